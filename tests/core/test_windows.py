"""Samples longer than an encoder's window: cut, heard in order, and off like any other."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from safe_framework.config.diagnostics import RecipeError
from safe_framework.core.model import SafeModel
from safe_framework.core.recipe_of import recipe_tables
from safe_framework.data.audio import Waveform, read_audio
from safe_framework.data.frame_cache import FrameCache, stack
from safe_framework.data.long_sounds import FileSound, JoinedSound, LongSound
from safe_framework.data.samples import read_for
from safe_framework.errors import DataError, SafeError, SampleError
from safe_framework.interfaces.types import FRAMES, FRAMES_MASK, PRESENT
from safe_framework.interfaces.windows import Window, Windows
from safe_framework.utils.tensors import bitwise_equal
from safe_framework_plugins.encoders.sensor import SensorEncoder
from tests.support.levels import RATE, LevelEncoder, write_m4a
from tests.support.tolerance import FORWARD, assert_same_sums
from tests.support.toys import DIM, ToyEncoder, ToyProjector, llama, lora, tokenizer

STEPS = 4
SHORT = torch.linspace(-1, 1, STEPS * DIM).reshape(STEPS, DIM)
LONG = torch.randn(11, DIM, generator=torch.Generator().manual_seed(1))


class CutEncoder(ToyEncoder):
    """The toy, which takes four steps at once."""

    def whole_window(self) -> Window:
        return Window(STEPS, STEPS)


def hearing(*, windows: bool = True, **options: Any) -> SafeModel:
    """A model whose sense is heard, with time vectors as training may leave them."""
    model = SafeModel(llama(), tokenizer())
    torch.manual_seed(0)
    encoder = CutEncoder()
    if windows:
        encoder.cut_into_windows(**({"longest": 20} | options))
    model.add_modality("touch", encoder=encoder, projector=ToyProjector(), fusion=lora(model))
    torch.manual_seed(3)
    touch = model.modality("touch")
    with torch.no_grad():
        for part in (touch.fusion, touch.segments, touch.times):
            for parameter in [] if part is None else part.parameters():
                parameter.normal_(std=0.5)
    return model.eval()


def logits(model: SafeModel, *held: Any) -> Tensor:
    """Of one text for each entry."""
    found: Tensor = model(**model.processor(["w3 w4 w5"] * len(held), touch=list(held))).logits
    return found


def test_what_fits_into_one_window_has_its_bits() -> None:
    """Law: a sample of one window gives what it gives without ``windows``, alone and in slots."""
    plain, cutting = hearing(windows=False), hearing()
    assert bitwise_equal(logits(cutting, SHORT), logits(plain, SHORT))
    assert bitwise_equal(logits(cutting, [SHORT, -SHORT]), logits(plain, [SHORT, -SHORT]))


def test_every_window_is_heard_and_their_order_counts() -> None:
    """Law: a change in any window, or of their order, changes the outputs."""
    model = hearing()
    whole = logits(model, LONG)
    for window in (slice(0, 4), slice(4, 8), slice(8, 11)):
        changed = LONG.clone()
        changed[window] += 1
        assert not torch.allclose(whole, logits(model, changed), atol=1e-4)
    turned = torch.cat([LONG[4:8], LONG[:4], LONG[8:]])
    assert not torch.allclose(whole, logits(model, turned), atol=1e-4)


def test_rows_of_other_lengths_change_nothing() -> None:
    """Law: a long sample, a short one and several of both in a batch are what they are alone."""
    model, rows = hearing(), [LONG, SHORT, [SHORT, LONG], LONG[:5]]
    together = logits(model, *rows)
    for number, row in enumerate(rows):
        assert_same_sums(together[number], logits(model, row)[0], FORWARD)


@pytest.mark.parametrize("way", ["gate", "off", "absent"])
def test_off_is_the_base(way: str) -> None:
    """Law (L2): with its gate at 0, switched off or absent, a long sample is not there."""
    model = hearing()
    model.set_gate(0.0 if way == "gate" else 1.0)
    text = model.processor(["w3 w4 w5"])
    batch = text if way == "absent" else model.processor(["w3 w4 w5"], touch=[LONG])
    with torch.no_grad():
        expected = model.base(**text).logits
        if way == "off":
            with model.off():
                assert bitwise_equal(model(**batch).logits, expected)
        else:
            assert bitwise_equal(model(**batch).logits, expected)


def test_what_is_kept_is_what_is_encoded(tmp_path: Path) -> None:
    """Law: frames that were kept, of windows that overlap too, are heard as those made now."""
    for hop in (None, 3.0):
        model = hearing(hop=hop)
        touch = model.modality("touch")
        cache = touch.frame_cache(tmp_path)
        kept = [cache.frames([one])[0] for one in (LONG, SHORT)]
        assert kept[0].values.shape[1] == (11 if hop is None else 16 - 4 + 2)
        again = stack(kept, DIM)
        batch = dict(model.processor(["w3 w4 w5"] * 2, touch=[LONG, SHORT]))
        made = touch.encoded({k.removeprefix("touch__"): v for k, v in batch.items() if "__" in k})
        width = again.mask.shape[1]
        assert bitwise_equal(made[FRAMES_MASK][:, :width], again.mask)
        real = made[FRAMES_MASK][:, :width]
        assert_same_sums(made[FRAMES][:, :width][real], again.values[real], FORWARD)
        own = {k: v for k, v in batch.items() if "__" not in k}
        own |= {f"touch__{PRESENT}": batch[f"touch__{PRESENT}"]}
        found = model(**own, touch__frames=again.values, touch__frames_mask=again.mask).logits
        assert_same_sums(found, model(**batch).logits, FORWARD)


def test_too_long_names_the_option_and_the_length() -> None:
    """Law: what is longer than ``longest`` is refused, with its length and the option's name."""
    message = (
        "`touch[0]` lasts 21 steps, longer than the 20 steps that `longest` of its `windows` allows"
    )
    with pytest.raises(SampleError) as caught:
        logits(hearing(), torch.zeros(21, DIM))
    assert (caught.value.message, caught.value.hint) == (
        message,
        "`windows = { longest = 21 }`, or cut the recording",
    )
    with pytest.raises(SampleError, match=r"`touch\[1\]` holds NaN|samples\[1\] holds NaN"):
        logits(hearing(), SHORT, torch.full((9, DIM), math.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hop": 5.0}, "`hop` must be from 1 steps to the window of 4 steps, not 5"),
        ({"hop": 0.2}, "`hop` must be from 1 steps to the window of 4 steps, not 0.2"),
        ({"longest": 3.0}, "`longest` must be at least the window of 4 steps, not 3"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    """Law: windows may neither leave a gap nor be longer than the longest sample."""
    with pytest.raises(ValueError, match=message):
        CutEncoder().cut_into_windows(**options)


def test_what_cannot_be_cut_is_refused() -> None:
    """Law: an encoder without a window, and tokens that stand in the text, refuse windows."""
    with pytest.raises(ValueError, match="a ToyEncoder does not say what it takes at once"):
        ToyEncoder().cut_into_windows()
    model = SafeModel(llama(), tokenizer())
    parts: Any = {"projector": ToyProjector(), "fusion": lora(model)}
    with pytest.raises(SafeError, match="`inline` of modality `touch` puts as many tokens"):
        model.add_modality("touch", encoder=CutEncoder().cut_into_windows(), inline=True, **parts)


def test_a_series_is_cut_by_its_own_clock() -> None:
    """Law: any series takes windows: of readings in seconds; a recipe made of it says so."""
    sensor = SensorEncoder(channels=2, rate=10.0, window=2.0, patch=5, dim=DIM)
    sensor.cut_into_windows(hop=1.0, longest=9.0)
    assert sensor.windows == Windows(Window(20, 4, 10.0), 10, 90)
    assert sensor.windows.most == 8
    model = SafeModel(llama(), tokenizer())
    model.add_modality("touch", encoder=sensor, projector=ToyProjector(), fusion=lora(model))
    frames = model.encode("touch", [np.random.default_rng(0).normal(size=(47, 2))])
    assert frames.mask.sum(1).tolist() == [4 * 3 + 4]
    assert recipe_tables(model)["modalities"]["touch"]["windows"] == {"hop": 1.0, "longest": 9.0}


def test_a_tail_too_short_for_a_frame_is_left_out() -> None:
    """Law: what is left behind the last whole window counts if the encoder makes a frame of it."""
    windows = Windows(Window(10, 5, shortest=3), 10, 100)
    assert [len(windows.starts(steps)) for steps in (2, 10, 12, 13, 20, 22)] == [1, 1, 1, 2, 2, 2]


def written(path: Path, seconds: float, rate: int = RATE, seed: int = 0) -> Path:
    """A file of noise."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(path, noise.astype(np.float32), rate)
    return path


def test_a_long_file_is_read_as_it_is_needed(tmp_path: Path) -> None:
    """Law: windows of a file are those of its whole sound; a short one is read at once."""
    encoder = LevelEncoder().cut_into_windows(hop=0.5)
    path = written(tmp_path / "long.wav", 3.3)
    sound = read_for(encoder, path, "row 1")
    assert isinstance(sound, FileSound)
    whole = read_audio(path, RATE).values
    pieces = list(sound.pieces(RATE, 500))
    assert [len(piece.values) for piece in pieces] == [1000] * 5 + [800]
    for number, piece in enumerate(pieces):
        assert np.array_equal(piece.values, whole[500 * number :][:RATE])
    assert isinstance(read_for(encoder, written(tmp_path / "a.wav", 0.9), ""), Waveform)
    other = written(tmp_path / "other.wav", 3.3, rate=2 * RATE)
    slower = read_for(encoder, other, "")
    assert np.allclose(slower.values, read_audio(other, RATE).values, atol=1e-3)


def test_what_pyav_reads_is_read_as_it_is_needed(tmp_path: Path) -> None:
    """Law: so is a recording that libsndfile cannot read."""
    path, rate = tmp_path / "long.m4a", 16_000
    write_m4a(path, 0.5 * np.sin(np.arange(3 * rate) / 20), rate)
    sound = read_for(LevelEncoder().cut_into_windows(), path, "row 1")
    assert isinstance(sound, FileSound)
    assert np.allclose(sound.values, read_audio(path, RATE).values, atol=1e-2)


def test_an_hour_is_prepared_in_little_memory(tmp_path: Path) -> None:
    """Law: preparing a recording holds no more of it, the longer it is: not its sound or frames."""
    cache_of: list[FrameCache] = []
    for name in ("short", "long"):
        encoder = LevelEncoder(seconds=30).cut_into_windows(longest=3600.0)
        cache_of.append(FrameCache("touch", encoder, lambda x, e=encoder: e(**x), tmp_path / name))
    peaks = []
    for cache, seconds in zip(cache_of, (400, 3600), strict=True):
        path = written(tmp_path / f"{seconds}.wav", seconds)
        sound: LongSound = read_for(cache.encoder, path, "")
        tracemalloc.start()
        frames = cache.frames([sound])[0]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert frames.values.shape == (1, 10 * seconds, 1)
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[0] < 4 * 3600 * RATE / 4  # of the hour's bytes


def test_clips_are_joined_at_their_times(tmp_path: Path) -> None:
    """Law: a table of clips and times is read as one sound, in a row or from a file of its own."""
    one, two = (written(tmp_path / f"{seed}.wav", 0.5, seed=seed) for seed in (1, 2))
    table = f'{{"joined": [["{one.name}", 0.25], ["{two.name}", 2.75]], "seconds": 3}}'
    (tmp_path / "joined.json").write_text(table)
    encoder = LevelEncoder().cut_into_windows()
    sound = read_for(encoder, tmp_path / "joined.json", "row 1")
    assert isinstance(sound, JoinedSound)
    expected = np.zeros(3 * RATE, np.float32)
    expected[250:750] = read_audio(one).values
    expected[2750:] = read_audio(two).values[:250]
    assert np.array_equal(sound.values, expected)
    assert np.array_equal(read_for(LevelEncoder(), tmp_path / "joined.json", "").values, expected)
    (tmp_path / "joined.json").write_text('{"joined": []}')
    with pytest.raises(DataError, match="joins no files, each with its time"):
        read_for(encoder, tmp_path / "joined.json", "row 1")


def test_when_something_is_heard_is_learned() -> None:
    """Law: asked what a window held, a model learns to tell, by the time vectors alone."""
    model = hearing()
    touch = model.modality("touch")
    with torch.no_grad():
        assert touch.times is not None
        touch.times.weight.zero_()
        for name, parameter in touch.fusion.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 1, DIM, generator=generator)
    optimizer = torch.optim.Adam(model.trainable_parameters().values(), lr=1e-2)

    def asked(rows: int) -> tuple[dict[str, Tensor], Tensor]:
        """Recordings of three windows, a window's name as the question, and what was there."""
        held = torch.randint(4, (rows, 3), generator=generator)
        window = torch.randint(3, (rows,), generator=generator)
        samples = [kinds[own].expand(-1, STEPS, -1).flatten(0, 1) for own in held]
        texts = [f"w7 w{10 + int(number)}" for number in window]
        return dict(model.processor(texts, touch=samples)), 20 + held[torch.arange(rows), window]

    model.train()
    for _ in range(200):
        batch, answers = asked(64)
        loss = nn.functional.cross_entropy(model(**batch).logits[:, -1], answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    batch, answers = asked(200)
    right = model(**batch).logits[:, -1].argmax(-1) == answers
    assert right.float().mean() > 0.8  # by chance 0.25
    with torch.no_grad():
        touch.times.weight.zero_()
    blind = model(**batch).logits[:, -1].argmax(-1) == answers
    assert blind.float().mean() < 0.7


def test_a_recipe_says_where_its_windows_are_wrong(tmp_path: Path) -> None:
    """Law: a mistake in ``windows`` is shown at its place."""
    from safe_framework.config.plugins import encoders_of
    from safe_framework.config.read import parse_recipe

    text = """
[base]
model = "smollm2-135m-instruct-q4"
[modalities.touch]
encoder = { use = "sensor", channels = 2, rate = 10.0, window = 2.0 }
projector = { use = "standard" }
fusion = { use = "lora" }
windows = { hop = 3.0 }
"""
    with pytest.raises(RecipeError, match="8:19: `hop` of `windows` must be from"):
        encoders_of(parse_recipe(text, tmp_path / "recipe.toml"))
