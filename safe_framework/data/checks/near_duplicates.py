"""Samples that are another split's, but for how they were stored: no hash of them is the same.

Sounds are compared by their waveforms, at 8 kHz, over two seconds from where they begin: two are
nearly the same where their normalised cross-correlation reaches 0.9 at some shift, whatever their
levels. Pictures are compared by thumbnails of 16 by 16 pixels in colour: their correlation must
reach 0.99, whatever their sizes, brightness and contrast. Crops and mirrored ones are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from safe_framework.data.audio import Waveform, resample
from safe_framework.data.checks.rows import CheckedSound
from safe_framework.errors import SafeError
from safe_framework.interfaces.samples import Sample
from safe_framework.utils.optional_imports import require

_RATE = 8_000
_SECONDS = 2
_ONSET = 0.05  # of the peak, where a sound begins
_SHORTEST = 64  # samples that can be told apart
_WINDOW, _HOP = 512, 256
_SAME_SPECTRUM = 0.95  # cosine of mean spectra, below which waveforms are not compared
_SAME_WAVE = 0.9
_SIDE = 16
_SAME_THUMBNAIL = 0.99
_CHUNK = 512  # rows of one split at a time


@attrs.frozen(eq=False)
class Likeness:
    """What of a sample is compared.

    Attributes:
        what: messages call the sample.
        summary: of unit length, whose product with another's says how alike two may be.
        wave: of a sound, for the last word; None of a picture.
    """

    what: str
    summary: NDArray[np.float32]
    wave: NDArray[np.float16] | None = None

    @property
    def least(self) -> float:
        """How alike two summaries must be."""
        return _SAME_THUMBNAIL if self.wave is None else _SAME_SPECTRUM

    def correlation(self, other: Likeness, product: float) -> float:
        """How alike two samples are, from 0 to 1.

        Args:
            other: of the same kind.
            product: of the summaries.
        """
        if self.wave is None or other.wave is None:
            return product
        return _cross_correlation(self.wave, other.wave)

    @property
    def same(self) -> float:
        """The correlation from which two samples are called nearly the same."""
        return _SAME_THUMBNAIL if self.wave is None else _SAME_WAVE


def likeness_of(sample: Sample, what: str) -> Likeness | None:
    """What of a sound or a picture is compared; None of anything else, or where all is alike."""
    if isinstance(sample, Waveform):
        return _of_sound(sample, what)
    if isinstance(sample, CheckedSound):
        return _of_wave(_beginning(sample), what)
    if not isinstance(sample, np.ndarray) or sample.dtype != np.uint8 or not sample.size:
        return None
    coloured = sample.ndim == 3 and sample.shape[2] == 3
    return _of_picture(sample, what) if coloured or sample.ndim == 2 else None


def _of_sound(sound: Waveform, what: str) -> Likeness | None:
    try:
        wave = resample(sound, _RATE).values
    except SafeError:  # too short to have one sample at that rate
        return None
    loud = np.abs(wave)
    begins = int((loud > _ONSET * loud.max()).argmax())
    return _of_wave(wave[begins:][: _SECONDS * _RATE], what)


def _beginning(sound: CheckedSound) -> NDArray[np.float32]:
    """What is compared of a sound, read no further than that."""
    size, wave = _SECONDS * _RATE, np.zeros(0, np.float32)
    for block in sound.at(_RATE).blocks():
        if not len(wave):
            loud = np.abs(block) > _ONSET * sound.levels.loudest
            block = block[int(loud.argmax()) :] if loud.any() else block[:0]
        wave = np.concatenate([wave, block])
        if len(wave) >= size:
            break
    return wave[:size]


def _of_wave(wave: NDArray[np.float32], what: str) -> Likeness | None:
    if len(wave) < _SHORTEST or not np.isfinite(wave).all() or not wave.any():
        return None
    padded = np.pad(wave, (0, max(0, _WINDOW - len(wave))))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    spectrum = np.abs(np.fft.rfft(pieces * np.hanning(_WINDOW))).mean(axis=0)
    return Likeness(what, _unit(np.sqrt(spectrum)), (wave / np.abs(wave).max()).astype(np.float16))


def _of_picture(pixels: NDArray[np.uint8], what: str) -> Likeness | None:
    pillow = require("PIL.Image", "image", "pictures are compared by Pillow")
    image = pillow.fromarray(pixels).convert("RGB").resize((_SIDE, _SIDE), pillow.Resampling.BOX)
    values = np.asarray(image, np.float32)
    values = values - values.mean(axis=(0, 1))  # (height, width, 3); a plain ground has no likeness
    return Likeness(what, _unit(values.ravel())) if np.abs(values).max() > 1 else None


def _unit(values: NDArray[np.floating]) -> NDArray[np.float32]:
    length = float(np.sqrt(np.square(values).sum()))
    return (values / length).astype(np.float32)


def _cross_correlation(one: NDArray[np.float16], other: NDArray[np.float16]) -> float:
    """The largest magnitude over all shifts, of waves normalised to unit energy."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    size = len(first) + len(second)
    product = np.fft.rfft(first, size) * np.fft.rfft(second, size).conj()
    energy = np.sqrt(np.square(first).sum() * np.square(second).sum())
    return float(np.abs(np.fft.irfft(product, size)).max() / energy)


def nearly_same(
    known: Sequence[Likeness], asked: Sequence[Likeness]
) -> Iterator[tuple[int, int, float]]:
    """Of each that is asked about the most alike known one, if they are nearly the same.

    Args:
        known: of one split, all of one kind.
        asked: of another.

    Yields:
        The place of the one asked about, of the known one, and their correlation.
    """
    if not known or not asked:
        return
    every = np.stack([one.summary for one in known])  # (known, features)
    for start in range(0, len(asked), _CHUNK):
        some = asked[start : start + _CHUNK]
        products = np.stack([one.summary for one in some]) @ every.T  # (asked, known)
        for row, one in enumerate(some):
            close = np.flatnonzero(products[row] >= one.least)
            found = [
                (one.correlation(known[at], float(products[row, at])), at) for at in close.tolist()
            ]
            best, at = max(found, default=(0.0, 0))
            if best >= one.same:
                yield start + row, at, best
