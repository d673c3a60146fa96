"""Altered copies of a training sample, encoded once like the sample itself."""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from safe_framework.data.audio import Waveform
from safe_framework.shapes import Sample

_GAIN_DECIBELS = 12.0
_NOISE_DECIBELS = (-50.0, -25.0)
_SHIFT = 0.1


def variants(sample: Sample, count: int, seed: int) -> list[Sample]:
    """The sample, and ``count`` altered copies of it if it is a waveform.

    A copy is shifted in time by up to a tenth of its length, made up to 12 decibels louder or
    softer, and mixed with Gaussian noise 25 to 50 decibels below it.
    """
    if not isinstance(sample, Waveform):
        return [sample]
    content = int.from_bytes(sample.values.tobytes()[:4096][::64], "little")
    random = np.random.default_rng([seed, content])
    return [sample, *[_altered(sample, random) for _ in range(count)]]


def _altered(sample: Waveform, random: np.random.Generator) -> Waveform:
    values = sample.values
    shift = int(random.uniform(-_SHIFT, _SHIFT) * len(values))
    moved = _shifted(values, shift)
    level = float(np.sqrt(np.square(values).mean()))
    noise = level * 10 ** (random.uniform(*_NOISE_DECIBELS) / 20)
    gain = 10 ** (random.uniform(-_GAIN_DECIBELS, _GAIN_DECIBELS) / 20)
    mixed = gain * (moved + noise * random.standard_normal(len(values)))
    return attrs.evolve(sample, values=mixed.astype(np.float32))


def _shifted(values: NDArray[np.float32], shift: int) -> NDArray[np.float32]:
    """The same length, later by ``shift`` samples, with silence where nothing is left."""
    moved = np.zeros_like(values)
    if shift >= 0:
        moved[shift:] = values[: len(values) - shift]
    else:
        moved[:shift] = values[-shift:]
    return moved
