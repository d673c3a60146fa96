"""Training samples that are varied: what each transformation does, and that variants are kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from safe_framework.config.schema import AugmentSpec
from safe_framework.data.audio import Waveform
from safe_framework.data.augmentation import Variation, varied_picture, varied_sound
from safe_framework.data.frame_cache import FrameCache, RawSampleStore, sample_key
from safe_framework.errors import DataError, SafeError, SampleError
from tests.support.toys import DIM, ToyEncoder

RATE = 8_000
TONE = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32) / 2
EVERYTHING = {
    "speed": 0.2, "tempo": 0.2, "gain": 12.0, "equalizer": 12.0, "reverb": 0.5, "noise": 10.0,
    "offset": 0.2,
}  # fmt: skip


def sounds(count: int = 24, wave: np.ndarray = TONE, **options: Any) -> list[np.ndarray]:
    """Variants of a sound, some of which are the sound itself."""
    spec = AugmentSpec(**options)
    return [varied_sound(wave, RATE, spec, np.random.default_rng(n)) for n in range(count)]


def pitch(wave: np.ndarray) -> float:
    """The strongest frequency, in hertz."""
    return float(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax() * RATE / len(wave))


def decibels(wave: np.ndarray) -> float:
    """Its power, relative to the tone's."""
    return float(10 * np.log10(np.square(wave).mean() / np.square(TONE).mean()))


def test_a_variant_is_a_sound_of_the_same_length() -> None:
    """Law: a variant has the sound's length and type, is finite, and within full scale."""
    for wave in (TONE, TONE[:1], np.zeros(700, np.float32)):
        for found in sounds(40, wave, **EVERYTHING):
            assert found.shape == wave.shape
            assert found.dtype == np.float32
            assert np.isfinite(found).all()
            assert np.abs(found).max() <= 1


def test_half_of_the_variants_are_changed() -> None:
    """Law: a transformation takes place in about half of the variants."""
    changed = [not np.array_equal(found, TONE) for found in sounds(400, gain=6.0)]
    assert 160 < sum(changed) < 240


def test_speed_moves_the_pitch_and_tempo_does_not() -> None:
    """Law: speed moves the pitch by up to its factor; tempo moves the end and leaves the pitch."""
    pitches = [pitch(found) for found in sounds(speed=0.2)]
    assert 440 / 1.2 - 2 < min(pitches) < 410
    assert 470 < max(pitches) < 440 * 1.2 + 2
    half = np.concatenate([TONE[: RATE // 2], np.zeros(RATE // 2, np.float32)])
    stretched = sounds(wave=half, tempo=0.3)
    assert all(abs(pitch(found) - 440) < 3 for found in stretched)
    ends = [np.flatnonzero(np.abs(found) > 0.1).max() / RATE for found in stretched]
    assert 0.5 / 1.3 - 0.05 < min(ends) < 0.47
    assert 0.53 < max(ends) < 0.5 * 1.3 + 0.05


def test_levels_noise_and_offsets_stay_within_what_is_asked() -> None:
    """Law: gain is within its decibels, noise that far below the sound, a shift within seconds."""
    levels = [decibels(found) for found in sounds(gain=4.0)]
    assert -4.1 < min(levels) < -1
    assert 1 < max(levels) < 4.1
    noises = [decibels(found - TONE) for found in sounds(noise=20.0) if (found != TONE).any()]
    assert -50.5 < min(noises) < -40
    assert -30 < max(noises) < -19.5
    begins = [np.flatnonzero(found)[0] / RATE for found in sounds(offset=0.2)]
    assert 0.05 < max(begins) <= 0.2


def test_an_equalizer_colours_and_a_room_echoes() -> None:
    """Law: an equalizer keeps octaves within its decibels; a room leaves sound where it stopped."""
    click = np.zeros(RATE, np.float32)
    click[100] = 0.9
    for found in sounds(12, click, equalizer=6.0):
        colours = 20 * np.log10(np.abs(np.fft.rfft(found)) / np.abs(np.fft.rfft(click)))
        assert np.abs(colours[50:3900]).max() < 6.5
    echoes = [np.square(found[200:]).sum() for found in sounds(12, click, reverb=0.5)]
    assert 0 < sum(echo > 1e-4 for echo in echoes) < 12


def test_pictures_keep_their_size() -> None:
    """Law: a varied picture keeps size and type, and a flip mirrors it."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[5:9, 3:9] = (200, 100, 40)
    for option in ({"crop": 0.4}, {"flip": True}, {"colour": 0.5}, {"blur": 3.0}):
        spec = AugmentSpec(**option)
        for plain in (pixels, pixels[..., 0]):
            found = [varied_picture(plain, spec, np.random.default_rng(n)) for n in range(8)]
            assert {one.shape for one in found} == {plain.shape}
            assert {one.dtype for one in found} == {np.dtype(np.uint8)}
            assert len({one.tobytes() for one in found}) > 1
    spec = AugmentSpec(flip=True)
    found = [varied_picture(pixels, spec, np.random.default_rng(n)) for n in range(8)]
    kinds = {one.tobytes() for one in found}
    assert kinds == {pixels.tobytes(), np.ascontiguousarray(pixels[:, ::-1]).tobytes()}


class Spectrograms(ToyEncoder):
    """Takes waveforms as one frame of their first samples, and counts what it encodes."""

    sampling_rate = RATE
    encoded = 0

    def prepare(self, samples: Any) -> Mapping[str, Tensor]:
        self.encoded += len(samples)
        rows = [torch.as_tensor(sample.values[: 3 * DIM]).reshape(3, DIM) for sample in samples]
        return {"values": torch.stack(rows), "mask": torch.ones(len(rows), 3, dtype=torch.bool)}

    def augment(self, sample: Waveform, generator: np.random.Generator) -> Waveform:
        return Waveform(sample.values * generator.uniform(0.5, 1.0), RATE)


def variation(seed: int = 0, number: int = 1, **options: Any) -> Variation:
    """A variant of waveforms."""
    return Variation(AugmentSpec(**options), Spectrograms(), seed, number)


def test_a_variant_is_its_seeds_and_its_contents_alone() -> None:
    """Law: a variant comes out the same again; another seed, number or sample gives another."""
    wave = Waveform(TONE, RATE)
    content = sample_key(wave)
    first = variation(noise=10.0).of(wave, content).values
    assert np.array_equal(variation(noise=10.0).of(wave, content).values, first)
    for other in (variation(seed=1, noise=10.0), variation(number=2, noise=10.0)):
        assert not np.array_equal(other.of(wave, content).values, first)
        assert other.key != variation(noise=10.0).key
    assert variation(noise=11.0).key != variation(noise=10.0).key
    other_sample = variation(noise=10.0).of(wave, sample_key(Waveform(TONE / 2, RATE)))
    assert not np.array_equal(other_sample.values, first)


def test_what_cannot_be_done_to_a_sample_is_refused() -> None:
    """Law: a key that does not fit a modality's samples is an error that names it."""
    with pytest.raises(DataError, match=r"^`crop`, `flip` of `augment` cannot be done to a sound"):
        variation(crop=0.1, flip=True).of(Waveform(TONE, RATE), "00" * 32)
    with pytest.raises(DataError, match=r"^`speed` of `augment` cannot be done to a picture"):
        variation(speed=0.1).of(np.zeros((4, 4, 3), np.uint8), "00" * 32)
    with pytest.raises(
        DataError, match=r"^`blur` of `augment` cannot be done to a ndarray of this"
    ):
        variation(blur=1.0).of(np.zeros((4, 4), np.float32), "00" * 32)
    with pytest.raises(SampleError, match=r"^`mask` of `augment` masks spectrograms"):
        variation(mask=0.5).masked({"ids": torch.arange(3)[None]}, "00" * 32)


def test_a_mask_covers_a_band_and_a_span() -> None:
    """Law: masked is one run of each axis, of at most the share asked for, with the mean."""
    values = torch.arange(24.0 * 50).reshape(1, 24, 50)
    for number in range(1, 9):
        (found,) = variation(number=number, mask=0.25).masked({"a": values}, "07" * 32).values()
        changed = (found != values)[0]
        assert int(changed.all(1).sum()) <= 6
        assert int(changed.all(0).sum()) <= 12
        assert set(found[0][changed].tolist()) <= {float(values.mean())}


def test_variants_are_encoded_once(tmp_path: Path) -> None:
    """Law: frames of a variant are kept beside the sample's, and found again by another run."""
    encoder = Spectrograms()
    waves = [Waveform(TONE, RATE), Waveform(TONE[::-1].copy(), RATE)]
    own = FrameCache("audio", encoder, lambda given: encoder(**given), tmp_path).frames(waves)
    varied = Variation(AugmentSpec(gain=6.0, mask=0.5), encoder, 0, 1)
    for _ in range(2):
        cache = FrameCache("audio", encoder, lambda given: encoder(**given), tmp_path)
        found = cache.frames(waves, variation=varied)
        assert encoder.encoded == 4
        assert not torch.equal(found[0].values, own[0].values)
    raw = RawSampleStore(encoder).frames(waves, variation=variation(gain=6.0))
    assert not np.array_equal(raw[0].sample.values, TONE)
    with pytest.raises(SafeError, match="leave `mask` out"):
        RawSampleStore(encoder).frames(waves, variation=varied)
