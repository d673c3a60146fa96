"""The threshold of a relevance gate that bounds how often it opens by mistake.

Learn then Test (Angelopoulos et al. 2021, arXiv:2110.01052): each threshold of a sequence that was
fixed beforehand is tested against "it opens by mistake in more than ``risk`` of the calls", from
the highest on, until one is not refuted. All that were are valid at once with the asked confidence,
and the lowest of them opens most often when it should. MAPIE does the testing; of a loss that is 0
or 1 its p-value is the binomial tail, so that 299 calls without a mistake show 1 % at 95 %.

Calls of several kinds are tested by themselves and the highest of their thresholds is taken. Where
that lies too low for some kind, it lies too low for the one whose true threshold is the highest, so
the confidence holds for all kinds together.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from safe_framework.errors import SafeError
from safe_framework.utils.optional_imports import require

_STEPS = 1001  # thresholds that are tested
_REACH = 20.0  # log odds, on both sides
_ROUNDING = 1e-9  # of a p-value that equals its level
_ENDS = 1e-12  # where the search for a bound has ended


@attrs.frozen
class Counted:
    """How many of some calls did something, with its exact interval.

    Attributes:
        count: of the calls that did.
        calls: of all.
        low: lower end of the two-sided 95 % interval of the share (Clopper and Pearson 1934).
        high: upper end.
        each: what each call did, in a fixed order: 1 or 0.
    """

    count: int
    calls: int
    low: float
    high: float
    each: str = ""

    @property
    def share(self) -> float:
        """Of the calls that did."""
        return self.count / self.calls

    @classmethod
    def of(cls, did: Sequence[bool] | NDArray[np.bool_]) -> Counted:
        """Count calls; there must be one."""
        count, calls = sum(map(bool, did)), len(did)
        low = 0.0 if count == 0 else 1 - upper_bound(calls - count, calls, 0.975)
        each = "".join("01"[bool(one)] for one in did)
        return cls(count, calls, low, upper_bound(count, calls, 0.975), each)

    def told(self) -> dict[str, float]:
        """What is told of it where each call is of no interest."""
        return {"count": self.count, "calls": self.calls, "low": self.low, "high": self.high}


def upper_bound(count: int, calls: int, confidence: float) -> float:
    """The largest share of which ``count`` or fewer of ``calls`` are not yet too few.

    One-sided (Clopper and Pearson 1934): the share lies below with at least this confidence.

    >>> round(upper_bound(0, 299, 0.95), 5), round(upper_bound(1, 473, 0.95), 4)
    (0.00997, 0.01)
    """
    if count >= calls:
        return 1.0
    low, high = count / calls, 1.0
    while high - low > _ENDS:
        middle = (low + high) / 2
        if _at_most(count, calls, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(count: int, calls: int, share: float) -> float:
    """The probability of ``count`` or fewer of ``calls``, each of this ``share``."""
    if share <= 0:
        return 1.0
    if share >= 1:
        return float(count >= calls)
    total = math.lgamma(calls + 1)
    return math.fsum(
        math.exp(
            total - math.lgamma(k + 1) - math.lgamma(calls - k + 1)
            + k * math.log(share) + (calls - k) * math.log1p(-share)
        )
        for k in range(count + 1)
    )  # fmt: skip


def calls_needed(risk: float, confidence: float) -> int:
    """How many calls without one mistake show a risk.

    >>> calls_needed(0.01, 0.95), calls_needed(0.001, 0.95)
    (299, 2995)
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-risk) - _ENDS)


def risk_shown(calls: int, risk: float, confidence: float) -> float:
    """The risk that so many calls can show: the asked one, or the least that they could.

    >>> risk_shown(400, 0.01, 0.95)
    0.01
    >>> round(risk_shown(100, 0.01, 0.95), 3)
    0.03
    """
    if calls >= calls_needed(risk, confidence):
        return risk
    return -math.expm1(math.log(1 - confidence) / calls) * (1 + _ROUNDING)


@attrs.frozen
class Threshold:
    """Where a gate opens, and what that was shown to bound.

    Attributes:
        value: the gate opens above it.
        risks: by kind of call, the risk that was shown.
    """

    value: float
    risks: Mapping[str, float]


def safe_threshold(
    irrelevant: Mapping[str, Sequence[float]],
    relevant: Sequence[float],
    *,
    risk: float,
    confidence: float,
) -> Threshold:
    """The lowest threshold at which every kind of irrelevant call is shown to open it seldom.

    A kind with too few calls is held to the risk that they can show, ``risk_shown``, which depends
    on their number alone.

    Args:
        irrelevant: scores of calls that must not open it, by kind.
        relevant: scores of calls that should; may be none, since they decide nothing.
        risk: largest share of irrelevant calls that open it.
        confidence: with which that is to hold.

    Raises:
        SafeError: MAPIE is not installed; or not even the highest threshold is valid.
    """
    risks = {name: risk_shown(len(own), risk, confidence) for name, own in irrelevant.items()}
    found = [
        _lowest_valid(np.asarray(own, float), np.asarray(relevant, float), risks[name], confidence)
        for name, own in irrelevant.items()
    ]
    return Threshold(max(found), risks)


def _lowest_valid(
    irrelevant: NDArray[np.float64], relevant: NDArray[np.float64], risk: float, confidence: float
) -> float:
    control = require("mapie.risk_control", "calibrate", "calibration needs MAPIE")
    scores = np.concatenate([irrelevant, relevant])
    labels = np.concatenate([np.zeros(len(irrelevant), int), np.ones(len(relevant), int)])
    thresholds = np.linspace(-_REACH, _REACH, _STEPS)
    controller = control.BinaryClassificationController(
        predict_function=_probabilities,
        risk="fpr",
        target_level=risk,
        confidence_level=confidence,
        best_predict_param_choice="recall",
        list_predict_params=_logistic(thresholds),
        fwer_method="fixed_sequence",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of no valid threshold: see below
        controller.calibrate(scores, labels)
    valid = thresholds[np.isin(_logistic(thresholds), controller.valid_predict_params)]
    if not len(valid):
        raise SafeError(
            "no threshold keeps the gate closed on irrelevant calls",
            hint="train the relevance head on texts that are more like them",
        )
    return float(valid.min())


def _probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    opens = _logistic(scores)
    return np.stack([1 - opens, opens], axis=1)


def _logistic(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    held = np.clip(scores, -_REACH - 1, _REACH + 1)
    found: NDArray[np.float64] = 1 / (1 + np.exp(-held))
    return found
