"""Irrelevant samples of a modality: what counterfactual retention puts beside unrelated text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from safe_framework.data.long_sounds import LongSound, loaded
from safe_framework.errors import DataError
from safe_framework.interfaces.samples import Sample, Several, each_of, together

_Array = NDArray[Any]


def distractor(
    kind: str, pool: Sequence[Sample | Several[Sample]], generator: torch.Generator
) -> Sample | Several[Sample]:
    """One irrelevant sample, made from a random entry of ``pool``; several where that is several.

    Args:
        kind: ``"silent"`` is zeros in the sample's shape, ``"noise"`` Gaussian noise as loud as
            it, ``"shuffled"`` the sample itself, and so is ``"foreign"``, whose pool is not of the
            task.
        pool: samples of the modality: arrays, or attrs objects that hold one as ``values``.
        generator: decides which sample and which noise; a CPU generator.

    Raises:
        DataError: the kind is unknown, the pool is empty, or its samples hold no array.
    """
    if kind not in _MAKERS:
        known = ", ".join(f"`{name}`" for name in _MAKERS)
        raise DataError(f"`{kind}` is no kind of irrelevant sample", hint=f"use one of {known}")
    if not pool:
        raise DataError(
            f"there is no sample to make `{kind}` ones from", hint="give at least one sample"
        )
    like = pool[int(torch.randint(len(pool), (), generator=generator))]
    if _MAKERS[kind] is _shuffled and any(isinstance(one, LongSound) for one in each_of(like)):
        return like  # as it is, so that it is known again without being read
    return together(
        [
            _with_values(one, _MAKERS[kind](_values(one), generator))
            for one in map(loaded, each_of(like))
        ]
    )


def _silent(values: _Array, generator: torch.Generator) -> _Array:
    return np.zeros_like(values)


def _noise(values: _Array, generator: torch.Generator) -> _Array:
    loudness = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
    noise = loudness * torch.randn(values.shape, generator=generator, dtype=torch.float64).numpy()
    if np.issubdtype(values.dtype, np.integer):
        limits = np.iinfo(values.dtype)
        noise = np.clip(np.rint(noise), limits.min, limits.max)
    return noise.astype(values.dtype)


def _shuffled(values: _Array, generator: torch.Generator) -> _Array:
    return values


KINDS: Mapping[str, Callable[[_Array, torch.Generator], _Array]] = {
    "silent": _silent,
    "noise": _noise,
    "shuffled": _shuffled,
}
"""The kinds of irrelevant sample that the task's own samples give."""

FOREIGN = "foreign"
_MAKERS = {**KINDS, FOREIGN: _shuffled}


def _values(sample: Sample) -> _Array:
    values = sample.values if attrs.has(type(sample)) else sample
    if isinstance(values, np.ndarray) and values.size:
        return values
    raise DataError(
        f"no irrelevant sample can be made like a `{type(sample).__name__}`",
        hint="use NumPy arrays, or attrs objects whose `values` is one that is not empty",
    )


def _with_values(sample: Sample, values: _Array) -> Sample:
    return attrs.evolve(sample, values=values) if attrs.has(type(sample)) else values
