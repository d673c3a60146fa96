"""Augmentation: training samples varied at random, each in a number of variants that are kept.

A variant depends on the sample's content, the recipe's ``augment``, the run's seed and its number
alone. So its frames are cached as those of the sample itself are, a resumed run meets the same
ones, and a step takes no longer than without. Each transformation takes place in half of the
variants. Held-out samples are never varied.

NumPy alone does it, with soxr for speed: audiomentations, which would do the same for sound, takes
no soxr of version 1 or newer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from safe_framework.config.schema import AugmentSpec
from safe_framework.data.audio import Waveform
from safe_framework.errors import DataError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.utils.hashing import text_fingerprint
from safe_framework.utils.optional_imports import require

Generator = np.random.Generator

_CHANCE = 0.5  # of each transformation in a variant
_BANDS = (62.5, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)  # Hz, an octave apart
_WINDOW, _HOP = 512, 128  # of the phase vocoder, in samples: 32 and 8 ms at 16 kHz
_STEEPEST_NOISE = 2.0  # the power of noise falls with frequency by up to this exponent: brown
_WETTEST = 1.0  # the echoes' energy, relative to the sound's own
_GREY = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


@attrs.frozen(eq=False)
class Variation:
    """One variant of every sample of a modality.

    Attributes:
        spec: how samples are varied.
        encoder: of the modality; its own ``augment`` comes last.
        seed: of the run.
        number: of the variant, from 1.
    """

    spec: AugmentSpec
    encoder: Encoder
    seed: int
    number: int

    @property
    def key(self) -> str:
        """What tells this variant of a sample from others."""
        return text_fingerprint(attrs.asdict(self.spec), self.seed, self.number)[:16]

    def of(self, sample: Sample, content: str) -> Sample:
        """The sample's variant, of its type and shape.

        Args:
            sample: a waveform, or whatever the encoder's own ``augment`` takes.
            content: the SHA-256 of its content.

        Raises:
            DataError: the recipe asks for what cannot be done to such a sample.
        """
        generator = self._generator(content, 0)
        if isinstance(sample, Waveform):
            self._refuse(_PICTURES, "a sound")
            values = varied_sound(sample.values, sample.sampling_rate, self.spec, generator)
            sample = Waveform(values, sample.sampling_rate)
        elif _is_picture(sample):
            self._refuse(_SOUNDS, "a picture")
            sample = varied_picture(sample, self.spec, generator)
        else:
            self._refuse((*_SOUNDS, *_PICTURES), f"a {type(sample).__name__} of this kind")
        return self.encoder.augment(sample, generator)

    def masked(self, prepared: Mapping[str, Tensor], content: str) -> Mapping[str, Tensor]:
        """What the encoder prepared of one sample, with a band and a span of it masked.

        SpecAugment (Park et al. 2019, arXiv:1904.08779) without its time warping: in every tensor
        of floats with two axes behind the batch's, a run of each of the last two is replaced by
        the tensor's mean.

        Raises:
            SampleError: the encoder prepares no such tensor.
        """
        if not self.spec.mask:
            return prepared
        generator = self._generator(content, 1)
        found = {
            name: _masked(value, self.spec.mask, generator)
            if value.is_floating_point() and value.dim() > 2
            else value
            for name, value in prepared.items()
        }
        if all(found[name] is prepared[name] for name in prepared):
            raise SampleError(
                "`mask` of `augment` masks spectrograms, of which its encoder prepares none",
                hint="leave `mask` out",
            )
        return found

    def _generator(self, content: str, use: int) -> Generator:
        return np.random.default_rng((self.seed, self.number, use, int(content[:16], 16)))

    def _refuse(self, keys: tuple[str, ...], what: str) -> None:
        if wrong := [key for key in keys if getattr(self.spec, key)]:
            named = ", ".join(f"`{key}`" for key in wrong)
            raise DataError(
                f"{named} of `augment` cannot be done to {what}",
                hint="leave it out; an encoder may vary its samples in its own `augment`",
            )


def varied_sound(
    wave: NDArray[np.float32], rate: int, spec: AugmentSpec, generator: Generator
) -> NDArray[np.float32]:
    """A recording as it might have been made otherwise; it keeps its length.

    Args:
        wave: amplitudes, (samples,).
        rate: samples a second, in hertz.
        spec: what may be done to it.
        generator: of everything random.
    """
    steps: tuple[tuple[Any, Callable[[NDArray[Any]], NDArray[Any]]], ...] = (
        (spec.speed, lambda held: _faster(held, _factor(spec.speed, generator))),
        (spec.tempo, lambda held: _stretched(held, _factor(spec.tempo, generator))),
        (spec.offset, lambda held: _shifted(held, round(_within(spec.offset, generator) * rate))),
        (spec.equalizer, lambda held: _equalized(held, rate, spec.equalizer, generator)),
        (spec.reverb, lambda held: _echoing(held, rate, spec.reverb, generator)),
        (spec.noise is not None, lambda held: _noisy(held, spec.noise or 0.0, generator)),
        (spec.gain, lambda held: held * 10 ** (_within(spec.gain, generator) / 20)),
    )
    found: NDArray[Any] = wave.astype(np.float64)
    for wanted, change in steps:
        if wanted and generator.random() < _CHANCE:
            found = _fitted(change(found), len(wave))
    found /= max(1.0, float(np.abs(found).max()))
    return found.astype(np.float32)


def varied_picture(
    pixels: NDArray[np.uint8], spec: AugmentSpec, generator: Generator
) -> NDArray[np.uint8]:
    """A picture as it might have been taken otherwise; it keeps its size.

    Args:
        pixels: (height, width, 3), or (height, width) without colours.
        spec: what may be done to it.
        generator: of everything random.
    """
    pillow = require("PIL.Image", "image", "varying pictures needs Pillow")
    found: NDArray[Any] = pixels
    if spec.crop and generator.random() < _CHANCE:
        height, width = pixels.shape[:2]
        box = _box(width, height, 1 - generator.uniform(0, spec.crop), generator)
        cut = pillow.fromarray(found).resize((width, height), pillow.Resampling.BICUBIC, box)
        found = np.asarray(cut)
    if spec.flip and generator.random() < _CHANCE:
        found = found[:, ::-1]
    if spec.colour and generator.random() < _CHANCE:
        found = _recoloured(found, spec.colour, generator)
    if spec.blur and generator.random() < _CHANCE:
        filters = require("PIL.ImageFilter", "image", "varying pictures needs Pillow")
        radius = generator.uniform(0, spec.blur)
        soft = pillow.fromarray(np.ascontiguousarray(found)).filter(filters.GaussianBlur(radius))
        found = np.asarray(soft)
    return np.ascontiguousarray(found)


_SOUNDS = ("speed", "tempo", "gain", "equalizer", "reverb", "noise", "offset")
_PICTURES = ("crop", "flip", "colour", "blur")


def _is_picture(sample: Sample) -> bool:
    return (
        isinstance(sample, np.ndarray)
        and sample.dtype == np.uint8
        and (sample.ndim == 2 or (sample.ndim == 3 and sample.shape[2] == 3))
    )


def _within(most: float, generator: Generator) -> float:
    return float(generator.uniform(-most, most))


def _factor(most: float, generator: Generator) -> float:
    """A factor between 1 / (1 + most) and 1 + most, evenly on a scale of logarithms."""
    return float(np.exp(_within(float(np.log1p(most)), generator)))


def _fitted(wave: NDArray[Any], length: int) -> NDArray[Any]:
    return np.pad(wave[:length], (0, max(0, length - len(wave))))


def _faster(wave: NDArray[Any], factor: float) -> NDArray[Any]:
    """Played faster by a factor, and so higher: speed perturbation (Ko et al. 2015)."""
    soxr = require("soxr", "audio", "changing the speed of sound needs `soxr`")
    return np.asarray(soxr.resample(wave, factor, 1.0))


def _stretched(wave: NDArray[Any], factor: float) -> NDArray[Any]:
    """Faster by a factor at the same pitch: a phase vocoder (Flanagan and Golden 1966)."""
    if len(wave) < _WINDOW:
        return wave
    window = np.hanning(_WINDOW + 1)[:-1]
    padded = np.pad(wave, (_WINDOW // 2, _WINDOW))
    starts = np.arange(0, len(padded) - _WINDOW - _HOP, _HOP * factor).astype(int)
    first = np.fft.rfft(_pieces(padded, starts) * window)  # (pieces, frequencies)
    second = np.fft.rfft(_pieces(padded, starts + _HOP) * window)
    advance = np.angle(second * first.conj())  # of each phase in one hop
    phases = np.angle(first[0]) + np.concatenate([0 * advance[:1], np.cumsum(advance[:-1], axis=0)])
    pieces = np.fft.irfft(np.abs(first) * np.exp(1j * phases)) * window
    found, weight = np.zeros(len(starts) * _HOP + _WINDOW), np.zeros(len(starts) * _HOP + _WINDOW)
    for number, piece in enumerate(pieces):
        found[number * _HOP : number * _HOP + _WINDOW] += piece
        weight[number * _HOP : number * _HOP + _WINDOW] += window**2
    return (found / np.maximum(weight, 1e-3))[_WINDOW // 2 :]


def _pieces(wave: NDArray[Any], starts: NDArray[Any]) -> NDArray[Any]:
    return wave[starts[:, None] + np.arange(_WINDOW)]  # (pieces, window)


def _shifted(wave: NDArray[Any], samples: int) -> NDArray[Any]:
    """Later, behind silence, or earlier, without its beginning; never without all of it."""
    samples = max(-(len(wave) // 2), min(samples, len(wave) // 2))
    return np.pad(wave, (samples, 0)) if samples > 0 else wave[-samples:]


def _equalized(wave: NDArray[Any], rate: int, most: float, generator: Generator) -> NDArray[Any]:
    """Every octave louder or softer by up to ``most`` decibels, smoothly in between."""
    spectrum = np.fft.rfft(wave, 2 * len(wave))
    hertz = np.maximum(np.fft.rfftfreq(2 * len(wave), 1 / rate), 1.0)
    decibels = np.interp(np.log(hertz), np.log(_BANDS), generator.uniform(-most, most, len(_BANDS)))
    found: NDArray[Any] = np.fft.irfft(spectrum * 10 ** (decibels / 20))
    return found


def _echoing(wave: NDArray[Any], rate: int, most: float, generator: Generator) -> NDArray[Any]:
    """In a room: noise that falls by 60 dB within up to ``most`` seconds, behind the sound."""
    length = max(1, round(generator.uniform(0.1, 1.0) * most * rate))
    tail = generator.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail *= np.sqrt(generator.uniform(0, _WETTEST) / np.square(tail).sum())
    size = len(wave) + length
    echoes = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)
    return wave + echoes[: len(wave)]


def _noisy(wave: NDArray[Any], least: float, generator: Generator) -> NDArray[Any]:
    """With noise of a random colour, the sound louder than it by ``least`` decibels to 30 more."""
    spectrum = np.fft.rfft(generator.standard_normal(len(wave)))
    steepness = generator.uniform(0, _STEEPEST_NOISE) / 2  # of the amplitude, half the power's
    spectrum /= np.maximum(np.arange(len(spectrum)), 1.0) ** steepness
    noise: NDArray[Any] = np.fft.irfft(spectrum, len(wave))
    ratio = 10 ** (-generator.uniform(least, least + 30) / 20)
    power = float(np.square(wave).mean()) / max(float(np.square(noise).mean()), 1e-20)
    noisy: NDArray[Any] = wave + noise * (ratio * power**0.5)
    return noisy


def _box(
    width: int, height: int, share: float, generator: Generator
) -> tuple[float, float, float, float]:
    """A part of a picture with ``share`` of each side, somewhere in it."""
    left, top = generator.uniform(0, 1 - share, 2) * (width, height)
    return left, top, left + share * width, top + share * height


def _recoloured(pixels: NDArray[Any], most: float, generator: Generator) -> NDArray[np.uint8]:
    """Other brightness, contrast and saturation, each by a factor of up to 1 + ``most``."""
    found = pixels.astype(np.float64) * _factor(most, generator)
    mean = found.mean()
    found = mean + (found - mean) * _factor(most, generator)
    if pixels.ndim == 3:
        grey = (found @ np.array(_GREY))[..., None]  # (height, width, 1)
        found = grey + (found - grey) * _factor(most, generator)
    levels: NDArray[np.uint8] = found.round().clip(0, 255).astype(np.uint8)
    return levels


def _masked(values: Tensor, most: float, generator: Generator) -> Tensor:
    found, mean = values.clone(), float(values.mean())
    for axis in (-1, -2):
        width = round(generator.uniform(0, most) * values.shape[axis])
        start = int(generator.integers(values.shape[axis] - width + 1))
        found.narrow(axis, start, width).fill_(mean)
    return found
