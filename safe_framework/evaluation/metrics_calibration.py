"""Whether answers that the model is sure of are right as often as it is sure.

Expected calibration error (Guo et al. 2017, arXiv:1706.04599): answers are put in bins of equal
width by their probability, and ``sum_b |b|/n |accuracy(b) - confidence(b)|`` is their mean gap.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_framework.evaluation.metrics import Estimate, percentiles

BINS = 10


@attrs.frozen
class Bin:
    """Answers of like probability.

    Attributes:
        confidence: their mean probability.
        accuracy: the share that is right.
        n: how many there are.
    """

    confidence: float
    accuracy: float
    n: int


@attrs.frozen
class Calibration:
    """How far the probability of an answer is from how often it is right.

    Attributes:
        error: the expected calibration error, from 0 to 1.
        confidence: mean probability of an answer.
        bins: that are not empty, by ascending probability.
    """

    error: Estimate
    confidence: Estimate
    bins: tuple[Bin, ...]


def calibration(
    confidence: Sequence[float], right: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> Calibration:
    """Calibration of answers, with intervals that draw whole examples.

    The error of few answers is biased upwards, since every bin's gap is taken without its sign; its
    interval is one of the same biased statistic.

    Args:
        confidence: probability of each answer, from 0 to 1.
        right: 1.0 where it is right, else 0.0.
        resamples: of the intervals.
        seed: of the intervals.

    Raises:
        ValueError: there is no answer.
    """
    sure, hits = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if not sure.size:
        raise ValueError("confidence: at least one is needed")
    draws = np.random.default_rng(seed).integers(sure.size, size=(resamples, sure.size))
    errors = [_error(sure[draw], hits[draw]) for draw in draws]
    means = [sure[draw].mean() for draw in draws]
    place = _places(sure)
    return Calibration(
        Estimate(_error(sure, hits), *percentiles(errors), sure.size),
        Estimate(float(sure.mean()), *percentiles(means), sure.size),
        tuple(_bin(sure[place == number], hits[place == number]) for number in np.unique(place)),
    )


def _places(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _bin(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> Bin:
    return Bin(float(confidence.mean()), float(right.mean()), confidence.size)


def _error(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    gaps = np.bincount(_places(confidence), weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / confidence.size)
