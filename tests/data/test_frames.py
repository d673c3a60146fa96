"""Frames on disk: each sample encoded once, and never a stale or a half file."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from safe_framework.core.modality import Modality
from safe_framework.core.segments import SegmentVectors
from safe_framework.data.audio import Waveform
from safe_framework.data.frame_cache import sample_key, stack
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.types import Frames, all_real
from tests.data import filling
from tests.support.toys import DIM, HIDDEN, ToyEncoder, ToyFusion, ToyProjector


class CountingEncoder(ToyEncoder):
    """Takes arrays, and counts the samples that it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        return super().prepare([torch.as_tensor(sample) for sample in samples])

    def forward(self, **inputs: Tensor) -> Frames:
        self.encoded += len(inputs["values"])
        return super().forward(**inputs)


class NanEncoder(CountingEncoder):
    def forward(self, **inputs: Tensor) -> Frames:
        values = inputs["values"] * float("nan")
        return Frames(values, inputs["mask"])


def modality(kind: type[ToyEncoder] = CountingEncoder) -> Modality:
    """A toy modality whose weights are always the same."""
    torch.manual_seed(0)
    return Modality("touch", kind(), ToyProjector(DIM, HIDDEN), ToyFusion(), SegmentVectors(HIDDEN))


@pytest.fixture
def touch() -> Modality:
    """A toy modality whose encoder counts."""
    return modality()


def samples(count: int = 3) -> list[np.ndarray]:
    """Arrays of different lengths."""
    random = np.random.default_rng(0)
    return [random.normal(size=(n + 1, DIM)).astype(np.float32) for n in range(count)]


def test_frames_are_the_encoders_own(touch: Modality, tmp_path: Path) -> None:
    """Law: stored frames are bitwise those of encoding the sample alone, whatever is beside it."""
    stored = touch.frame_cache(tmp_path).frames(samples())
    for sample, one in zip(samples(), stored, strict=True):
        direct = touch.encode(touch.encoder.prepare([sample]))
        assert one.mask.all()
        assert torch.equal(one.values, direct.values)


def test_a_sample_is_encoded_once(touch: Modality, tmp_path: Path) -> None:
    """Law: neither a repeat in a call nor a second call, nor another store, encodes it again."""
    encoder = touch.encoder
    assert isinstance(encoder, CountingEncoder)
    first = touch.frame_cache(tmp_path).frames([*samples(), *samples()])
    second = touch.frame_cache(tmp_path).frames(samples())
    assert encoder.encoded == 3
    assert all(torch.equal(a.values, b.values) for a, b in zip(first[:3], second, strict=True))
    assert all(a is b for a, b in zip(first[:3], first[3:], strict=True))  # nor is it held twice


def test_more_samples_than_a_group_come_in_order(touch: Modality, tmp_path: Path) -> None:
    """Law: each of any number of samples gets its own frames."""
    given = samples(37)
    stored = touch.frame_cache(tmp_path).frames(given)
    assert [one.values.shape[1] for one in stored] == [len(one) for one in given]


def test_no_sample_gives_no_frames(touch: Modality, tmp_path: Path) -> None:
    """Law: nothing in, nothing out."""
    assert touch.frame_cache(tmp_path).frames([]) == []


def test_progress_reaches_the_end(touch: Modality, tmp_path: Path) -> None:
    """Law: progress says how many of the missing samples are encoded, up to all of them."""
    reported: list[tuple[str, int, int]] = []
    touch.frame_cache(tmp_path).frames(samples(20), lambda *call: reported.append(call))
    assert [(done, total) for _, done, total in reported][-1] == (20, 20)


def test_a_trained_encoder_gets_a_folder_of_its_own(touch: Modality, tmp_path: Path) -> None:
    """Law: other weights of the encoder never read the frames of these."""
    before = touch.frame_cache(tmp_path).folder
    with torch.no_grad():
        next(touch.encoder.parameters()).add_(1e-3)
    assert touch.frame_cache(tmp_path).folder != before


def test_other_options_get_a_folder_of_their_own(touch: Modality, tmp_path: Path) -> None:
    """Law: other options of the encoder never read the frames of these."""
    folders = {touch.frame_cache(tmp_path, {"layer": layer}).folder for layer in (1, 2, None)}
    assert len(folders) == 3


def test_another_class_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    """Law: an encoder of another class never reads the frames of this one."""
    kinds = (ToyEncoder, CountingEncoder)
    assert len({modality(kind).frame_cache(tmp_path).folder for kind in kinds}) == len(kinds)


def test_the_projector_does_not_matter(touch: Modality, tmp_path: Path) -> None:
    """Law: training what follows the encoder leaves the frames valid."""
    before = touch.frame_cache(tmp_path).folder
    with torch.no_grad():
        next(touch.projector.parameters()).add_(1)
    assert touch.frame_cache(tmp_path).folder == before


@pytest.mark.parametrize(
    "other",
    [
        np.zeros((2, 3), np.float64),
        np.zeros((3, 2), np.float32),
        np.full((2, 3), 1e-9, np.float32),
        np.full((2, 3), -0.0, np.float32),
        Waveform(np.zeros(6, np.float32), 8000),
    ],
)
def test_a_key_is_the_content(other: object) -> None:
    """Law: samples that differ in a bit, type, shape or kind have different keys."""
    assert sample_key(other) != sample_key(np.zeros((2, 3), np.float32))


def test_a_key_counts_the_rate() -> None:
    """Law: the same numbers at another rate are another sample."""
    values = np.ones(8, np.float32)
    assert sample_key(Waveform(values, 8000)) != sample_key(Waveform(values, 16000))


def test_a_key_is_the_same_for_the_same_content() -> None:
    """Law: an array, its tensor, and the same array laid out otherwise have one key."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    same = [values, values.copy(), np.asfortranarray(values), torch.tensor(values)]
    assert len({sample_key(one) for one in same}) == 1


def test_a_sample_without_an_array_is_refused() -> None:
    """Law: what cannot be hashed is an error that names its type."""
    with pytest.raises(SampleError, match="type str holds no array"):
        sample_key("tone.wav")


def test_frames_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """Law: NaN from an encoder is an error, and nothing is stored."""
    store = modality(NanEncoder).frame_cache(tmp_path)
    with pytest.raises(SampleError, match="NaN or infinite frames"):
        store.frames(samples(1))
    assert not list(store.folder.iterdir())


def test_a_broken_write_leaves_no_readable_file(
    touch: Modality, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a write that is broken off leaves no frames, and the next call encodes anew."""
    store = touch.frame_cache(tmp_path)

    def broken(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(KeyboardInterrupt):
            store.frames(samples(1))
    assert not list(store.folder.glob("*.safetensors"))
    (frames,) = store.frames(samples(1))
    assert frames.values.shape == (1, 1, DIM)


def test_rows_are_stacked_with_their_mask() -> None:
    """Law: stacking pads to the longest row; an absent row is masked everywhere."""
    rows = [Frames(torch.ones(1, n, 2), all_real(torch.ones(1, n, 2))) for n in (1, 3)]
    stacked = stack([rows[0], None, rows[1]], 2)
    assert stacked.values.shape == (3, 3, 2)
    assert stacked.mask.tolist() == [[True, False, False], [False] * 3, [True] * 3]
    assert torch.equal(stacked.values.sum((1, 2)), torch.tensor([2.0, 0.0, 6.0]))


def test_absent_rows_alone_can_be_stacked() -> None:
    """Law: a batch without any frames has one masked frame, so that its shape is whole."""
    stacked = stack([None, None], 4)
    assert stacked.values.shape == (2, 1, 4)
    assert not stacked.mask.any()


class HoledEncoder(CountingEncoder):
    """Whose second frame is never real, and whose last never either."""

    def forward(self, **inputs: Tensor) -> Frames:
        frames = super().forward(**inputs)
        mask = frames.mask.clone()
        mask[:, 1] = mask[:, -1] = False
        return Frames(frames.values, mask)


def test_a_frame_that_is_not_real_keeps_its_position(tmp_path: Path) -> None:
    """Law: a masked frame between real ones stays masked; those after the last real one go."""
    touch = modality(HoledEncoder)
    sample = samples(6)[-1]
    for _ in ("computed", "read"):
        (stored,) = touch.frame_cache(tmp_path).frames([sample])
        assert stored.mask.tolist() == [[True, False, True, True, True]]
        direct = touch.encode(touch.encoder.prepare([sample]))
        assert torch.equal(stored.values[stored.mask], direct.values[direct.mask])
        assert not stored.values[~stored.mask].any()


class DeafEncoder(CountingEncoder):
    """Whose frames are never real."""

    def forward(self, **inputs: Tensor) -> Frames:
        frames = super().forward(**inputs)
        return Frames(frames.values, torch.zeros_like(frames.mask))


def test_a_sample_without_a_real_frame_has_none(tmp_path: Path) -> None:
    """Law: a sample of which every frame is masked is kept as one without frames, and stacks."""
    stored = modality(DeafEncoder).frame_cache(tmp_path).frames(samples(2))
    assert [one.values.shape for one in stored] == [(1, 0, DIM)] * 2
    together = stack(stored, DIM)
    assert together.values.shape == (2, 1, DIM)
    assert not together.mask.any()


def test_a_trainable_encoder_is_refused(touch: Modality, tmp_path: Path) -> None:
    """Law: nobody keeps frames of an encoder that trains: they would not stay true."""
    touch.encoder.requires_grad_(True)
    with pytest.raises(SafeError, match=r"`touch` is trainable.*\nhint: keep its samples"):
        touch.frame_cache(tmp_path)


def test_two_processes_may_fill_one_cache_at_the_same_time(tmp_path: Path) -> None:
    """Law: both get every sample's own frames; no reader ever sees half a file, none is left."""
    cache, meeting = tmp_path / "cache", tmp_path / "meeting"
    meeting.mkdir()
    script = Path(__file__).with_name("filling.py")
    both = [
        subprocess.Popen(
            [sys.executable, str(script), str(cache), str(meeting), *names],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for names in (("one", "two"), ("two", "one"))
    ]  # fmt: skip
    read = 0
    while any(process.poll() is None for process in both):
        for path in cache.glob("*/*.safetensors"):
            assert load_file(path)["frames"].shape == (filling.LENGTH, DIM)
            read += 1
    found = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], found
    torch.manual_seed(0)
    encoder = ToyEncoder()
    alone = [encoder(**encoder.prepare([sample])) for sample in filling.samples()]
    assert {out for out, _ in found} == {f"{filling.digest(alone)}\n"}
    files = [path.suffix for path in cache.rglob("*") if path.is_file()]
    assert files == [".safetensors"] * filling.COUNT
    assert read > 0
