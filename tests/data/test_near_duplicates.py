"""Sounds and pictures that are nearly the same, and others that are not."""

import numpy as np
import pytest
from PIL import Image

from safe_framework.data.audio import Waveform, resample
from safe_framework.data.checks.near_duplicates import Likeness, likeness_of, nearly_same

RATE = 16_000
TIME = np.arange(RATE) / RATE


def note(hertz: float, seed: int = 0) -> np.ndarray:
    """A plucked note with overtones of its own strengths and phases, and a little noise."""
    random = np.random.default_rng(seed)
    tones = [
        random.uniform(0.2, 1) * np.sin(2 * np.pi * hertz * n * TIME + random.uniform(0, 6))
        for n in range(1, 8)
    ]
    return (sum(tones) * np.exp(-3 * TIME) + 0.01 * random.normal(size=RATE)) / 8


def sound(values: np.ndarray, rate: int = RATE) -> Likeness:
    """What of a sound is compared."""
    found = likeness_of(Waveform(values, rate), "audio")
    assert found is not None
    return found


@pytest.mark.parametrize(
    "again",
    [
        0.1 * note(220),
        -note(220),
        np.concatenate([np.zeros(3000), note(220)]),
        note(220)[400:],
        note(220) + 0.005 * np.random.default_rng(1).normal(size=RATE),
        note(220).astype(np.float16).astype(np.float64),
    ],
    ids=["softer", "inverted", "later", "cut", "noisy", "rounded"],
)
def test_a_sound_that_was_stored_again_is_found(again: np.ndarray) -> None:
    """Law: level, sign, start, a little noise and rounding do not hide a copy."""
    known = [sound(note(330, 4)), sound(note(220))]
    ((asked, at, correlation),) = nearly_same(known, [sound(again)])
    assert (asked, at) == (0, 1)
    assert 0.9 <= correlation <= 1.001


def test_another_rate_hides_nothing() -> None:
    """Law: a copy at another rate is found."""
    other = resample(Waveform(note(220), RATE), 22_050)
    found = nearly_same([sound(note(220))], [sound(other.values, 22_050)])
    assert [pair[:2] for pair in found] == [(0, 0)]


def test_other_sounds_are_not_told_of() -> None:
    """Law: other pitches, other instruments at the same pitch, and other noise are no copies."""
    known = [sound(note(hertz)) for hertz in (196, 208, 220, 233, 440)]
    asked = [sound(note(226.5)), sound(note(220, seed=9)), sound(note(110, seed=3))]
    random = np.random.default_rng(5)
    noises = [sound(random.normal(size=RATE) / 8) for _ in range(2)]
    assert list(nearly_same(known, asked)) == []
    assert list(nearly_same(noises[:1], noises[1:])) == []
    assert list(nearly_same([], asked)) == list(nearly_same(known, [])) == []


def picture(seed: int = 0) -> np.ndarray:
    """Blocks of random colours."""
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((96, 96), Image.Resampling.BILINEAR))


def test_pictures_are_compared_whatever_their_size_and_light() -> None:
    """Law: smaller, darker and recompressed copies are found; others and plain grounds are not."""
    image = Image.fromarray(picture())
    asked = [np.asarray(image.resize((40, 40))), (picture() * 0.6).astype(np.uint8), picture(1)]
    known, looked_at = [
        [one for pixels in each if (one := likeness_of(pixels, "image"))]
        for each in ([picture(2), picture()], asked)
    ]
    found = nearly_same(known, looked_at)
    assert [pair[:2] for pair in found] == [(0, 1), (1, 1)]
    assert likeness_of(np.full((8, 8, 3), 200, np.uint8), "image") is None


def test_what_cannot_be_compared_has_no_likeness() -> None:
    """Law: silence, a sound of a few samples, and arrays of anything else are not compared."""
    for sample in (
        Waveform(np.zeros(RATE), RATE), Waveform(note(220)[:20], RATE), np.ones((3, 4)), "text",
        Waveform(np.full(RATE, np.nan), RATE), Waveform(np.full(RATE, np.inf), RATE),
        np.ones((4, 4, 7), np.uint8), np.ones((0, 4), np.uint8), np.ones(4, np.uint8),
    ):  # fmt: skip
        assert likeness_of(sample, "audio") is None
