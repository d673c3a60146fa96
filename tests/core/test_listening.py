"""A recording that goes on: its last part is a sample, and costs what is new in it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.data.audio import Waveform
from safe_framework.data.frame_cache import FrameCache, sample_key
from safe_framework.data.listening import Listener
from safe_framework.data.long_sounds import FileSound
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import FRAMES, Frames
from safe_framework.utils.tensors import bitwise_equal
from tests.support.chats import speaking
from tests.support.levels import RATE, LevelEncoder
from tests.support.tolerance import FORWARD, assert_same_sums
from tests.support.toys import ToyEncoder, ToyFusion, ToyProjector, llama


class Counting(LevelEncoder):
    """Levels, with how many samples of sound each call was given."""

    def __init__(self, seconds: int = 1) -> None:
        super().__init__(seconds)
        self.given: list[int] = []

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        self.given += [len(sample.values) for sample in samples]
        return super().prepare(samples)


def noise(seconds: float, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """So many seconds of it."""
    found = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    return found.astype(np.float32)


def listener(encoder: LevelEncoder, seconds: float | None = None, **options: Any) -> Listener:
    """What hears by an encoder alone."""
    return Listener("ear", encoder.eval(), lambda given: encoder(**given), seconds, **options)


def kept(frames: Frames) -> Frames:
    """As a cache keeps them: without the padding at their end."""
    length = int(frames.mask[0].nonzero().max()) + 1
    return Frames(frames.values[:, :length], frames.mask[:, :length])


def hearing(encoder: LevelEncoder) -> SafeModel:
    """A model that chats and hears."""
    words = speaking("chatml")
    model = SafeModel(llama(vocab_size=len(words), max_position_embeddings=512), words)
    parts: Any = {"projector": ToyProjector(encoder.dim), "fusion": ToyFusion()}
    model.add_modality("ear", encoder=encoder, **parts)
    return model.eval()


@pytest.mark.parametrize("hop", [None, 0.5, 0.3])
@pytest.mark.parametrize("seconds", [None, 3.7, 2.0, 0.6])
def test_what_is_heard_is_the_last_of_the_recording(
    hop: float | None, seconds: float | None, tmp_path: Path
) -> None:
    """Law: at any moment, and in whatever chunks it came, the frames are those of its last part."""
    encoder = LevelEncoder().cut_into_windows(hop=hop, longest=5.0)
    cache = FrameCache("ear", encoder, lambda given: encoder(**given), tmp_path)
    ears, whole, at = listener(encoder, seconds), noise(12), 0
    most = round(ears.seconds * RATE)
    for number, size in enumerate([3, 997, 1, 0, 1499, 250, 4000, 10, 700, 3000]):
        ears.add(whole[at : at + size])
        at += size
        found = ears.heard()
        expected = whole[at - len(found.sound.values) : at]
        assert np.array_equal(found.sound.values, expected)
        least = most if most <= RATE else most - (encoder.windows.hop if encoder.windows else 0)
        assert min(at, least) <= len(expected) <= most
        (read,) = cache.frames([Waveform(expected, RATE)])
        got = kept(found.frames)
        assert bitwise_equal(got.values, read.values), number
        assert torch.equal(got.mask, read.mask)


def test_a_window_is_encoded_once() -> None:
    """Law: a chunk costs the windows that it completes, and a call what is behind the last one."""
    encoder = Counting().cut_into_windows(longest=60.0)
    ears, whole = listener(encoder, 30.0), noise(100)
    for start in range(0, len(whole), 100):
        ears.add(whole[start : start + 100])
    assert encoder.given == [RATE] * 100
    ears.add(whole[:250])
    assert encoder.given == [RATE] * 100
    ears.heard()
    ears.heard()
    assert encoder.given[100:] == [250, 250]


def test_what_is_too_old_is_never_encoded() -> None:
    """Law: of a chunk that is longer than what is heard, the windows of its last part are."""
    encoder = Counting().cut_into_windows(longest=60.0)
    ears = listener(encoder, 3.0)
    ears.add(noise(50))
    assert encoder.given == [RATE] * 3


def test_without_windows_the_last_of_it_is_encoded_for_each_call() -> None:
    """Law: an encoder that cuts nothing hears its window, which slides with every sample."""
    encoder, whole = Counting(), noise(7)
    ears = listener(encoder)
    ears.add(whole[:5250])
    assert encoder.given == []
    assert np.array_equal(ears.heard().sound.values, whole[4250:5250])
    ears.add(whole[5250:5251])
    assert np.array_equal(ears.heard().sound.values, whole[4251:5251])
    assert encoder.given == [RATE, RATE]


def test_it_holds_no_more_of_a_longer_recording() -> None:
    """Law: what is held does not grow with what was heard."""
    second, held = noise(1), []
    tracemalloc.start()
    ears = listener(LevelEncoder().cut_into_windows(), 20.0)
    for seconds in (30, 300):
        for _ in range(seconds):
            ears.add(second)
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[1] < 1.2 * held[0]
    assert held[0] < 2 * 20 * second.nbytes


def test_another_rate_is_read_as_a_file_is(tmp_path: Path) -> None:
    """Law: chunks at another rate become the sound that a file with them is read as."""
    encoder = LevelEncoder().cut_into_windows(longest=30.0)
    given = noise(20)  # at twice the rate, 10 s
    path = tmp_path / "long.wav"
    soundfile.write(path, given, 2 * RATE, subtype="FLOAT")
    ears = listener(encoder, sampling_rate=2 * RATE)
    for start in range(0, len(given), 137):
        ears.add(given[start : start + 137])
    early = ears.heard().sound.values
    ears.end()
    expected = FileSound(path, RATE, 10.0).values
    assert np.array_equal(ears.heard().sound.values, expected)
    assert ears.total == len(expected) / RATE
    assert np.array_equal(early, expected[: len(early)])
    assert len(expected) - len(early) < RATE  # which the resampler held


@pytest.mark.parametrize("kind", [np.int16, np.float64, "tensor", "waveform"])
def test_chunks_may_be_what_sound_cards_give(kind: Any) -> None:
    """Law: integers are divided by their full scale, and a waveform or tensor is as its array."""
    ears, values = listener(LevelEncoder()), noise(1)
    if kind == "tensor":
        ears.add(torch.from_numpy(values))
    elif kind == "waveform":
        ears.add(Waveform(values, RATE))
    else:
        ears.add((values * 2**15).astype(kind) if kind is np.int16 else values.astype(kind))
    assert np.allclose(ears.heard().sound.values, values, atol=2**-15)


def test_the_model_hears_it_as_the_same_recording() -> None:
    """Law: in every form of a call it is what the recording of its last part is."""
    model = hearing(LevelEncoder().cut_into_windows(longest=8.0))
    ears = model.listen("ear", 4.0)
    ears.add(noise(9.3))
    heard = ears.heard()
    sound = heard.sound
    batch = model.processor(["what"], ear=[heard])
    assert f"ear__{FRAMES}" in batch
    expected = model(**model.processor(["what"], ear=[sound])).logits
    assert_same_sums(model(**batch).logits, expected, FORWARD)
    pipe = safe_framework.pipeline(model)
    options: Any = {"max_new_tokens": 6, "do_sample": False}
    for one in (heard, sound):
        part = {"type": "ear", "ear": one}
        chat = [{"role": "user", "content": [part, {"type": "text", "text": "what"}]}]
        answers = [
            pipe({"question": "what", "ear": one}, **options),
            pipe(chat, **options),
            pipe({"question": "what", "ear": [one, sound]}, **options),
        ]
        if one is heard:
            first = answers
    assert answers == first
    assert sample_key(heard) != sample_key(ears_of(model, noise(2)))


def ears_of(model: SafeModel, values: Any) -> Sample:
    """A sample of what a model heard."""
    ears = model.listen("ear")
    ears.add(values)
    return ears.heard()


def test_of_one_window_it_has_the_bits_of_the_recording() -> None:
    """Law: what fits into one window is bit for bit the sample; at gate 0 it is not there (L2)."""
    model = hearing(LevelEncoder().cut_into_windows(longest=8.0))
    heard = ears_of(model, noise(0.9))
    text = model.processor(["what"])
    batch, plain = (model.processor(["what"], ear=[one]) for one in (heard, heard.sound))
    assert bitwise_equal(model(**batch).logits, model(**plain).logits)
    assert not torch.equal(model(**batch).logits, model(**text).logits)
    assert bitwise_equal(model(**batch, gate=0.0).logits, model.base(**text).logits)


def test_frames_of_another_encoder_are_not_taken() -> None:
    """Law: given to another model, or while its encoder trains, the sound is encoded anew."""
    model, other = (hearing(LevelEncoder()) for _ in range(2))
    heard = ears_of(model, noise(0.9))
    assert f"ear__{FRAMES}" not in other.processor(["what"], ear=[heard])
    model.modality("ear").encoder.train()
    assert f"ear__{FRAMES}" not in model.processor(["what"], ear=[heard])


def test_what_cannot_be_heard_is_refused() -> None:
    """Law: each mistake is named with its fix, and nothing of a wrong chunk is heard."""
    ears = listener(LevelEncoder().cut_into_windows(longest=5.0))
    with pytest.raises(SampleError, match="nothing was heard yet for `ear`"):
        ears.heard()
    bad: list[tuple[Any, str]] = [
        (np.array([0.1, np.nan], np.float32), "the chunk holds NaN or Inf"),
        (np.zeros((2, 3), np.float32), r"must be \(samples,\)"),
        (np.zeros(3, np.int64), "must be floats, int16 or int32, not int64"),
        ([0.0, 0.1], "a chunk of sound must be an array, not list"),
        (Waveform(noise(0.1), 2 * RATE), "a chunk is sampled at 2000 Hz.*1000 Hz"),
    ]
    for chunk, message in bad:
        with pytest.raises(SampleError, match=message):
            ears.add(chunk)
    assert ears.total == 0
    ears.add(noise(0.1))
    ears.end()
    ears.end()
    with pytest.raises(SafeError, match="has ended"):
        ears.add(noise(0.1))
    encoder = LevelEncoder()
    for seconds, message in ((0.0, "must be a positive number"), (9.0, "takes at once")):
        with pytest.raises(SafeError, match=message):
            listener(encoder, seconds)
    with pytest.raises(SafeError, match="longer than the 5 s of `ear` that `longest`") as caught:
        listener(encoder.cut_into_windows(longest=5.0), 6.0)
    assert caught.value.hint == "`windows = { longest = 6 }` in the recipe, or listen to less"
    with pytest.raises(SafeError, match="`sampling_rate` must be a positive integer"):
        listener(encoder, sampling_rate=0)
    with pytest.raises(SafeError, match="`touch` is not listened to: it takes no sound"):
        Listener("touch", ToyEncoder(), lambda given: Frames(torch.zeros(0), torch.zeros(0)))


def test_an_encoder_in_training_does_not_listen() -> None:
    """Law: frames of weights that move are not kept."""
    encoder = LevelEncoder().cut_into_windows()
    ears = listener(encoder, 5.0)
    ears.add(noise(0.5))
    encoder.train()
    with pytest.raises(SafeError, match="the encoder of `ear` is in training"):
        ears.heard()


def test_a_window_that_is_refused_is_tried_again() -> None:
    """Law: where the encoder refuses a window, no other one takes its place."""

    class Refusing(LevelEncoder):
        refuses = True

        def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
            if self.refuses:
                raise SampleError("`samples[0]` is too loud")
            return super().prepare(samples)

    encoder = Refusing().cut_into_windows(longest=5.0)
    ears, whole = listener(encoder), noise(3.5)
    for part in (whole[:1200], whole[1200:]):
        with pytest.raises(SampleError, match="what was heard for `ear` is too loud"):
            ears.add(part)
    encoder.refuses = False
    other = listener(LevelEncoder().cut_into_windows(longest=5.0))
    other.add(whole)
    assert bitwise_equal(ears.heard().frames.values, other.heard().frames.values)
