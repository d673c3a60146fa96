"""One measurement, what it means for retention, and which of several is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from safe_framework.evaluation.metrics import Estimate, bootstrap

if TYPE_CHECKING:
    from safe_framework.config.schema_watching import MonitorSpec


@attrs.frozen
class Counts:
    """What was counted on held-out data, before any estimate.

    Attributes:
        right: 1.0 for each example that was answered right, 0.0 for any other.
        task_loss: mean loss of the held-out answers' tokens.
        agreed: positions of each text at which the next token is the base's.
        positions: of each text.
    """

    right: tuple[float, ...]
    task_loss: float
    agreed: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Agreement on each text."""
        return tuple(a / n for a, n in zip(self.agreed, self.positions, strict=True))


@attrs.frozen
class Reading:
    """Gain and retention at one step, with 95 % intervals.

    Attributes:
        step: optimizer steps that had been taken.
        stage: of the curriculum; empty without one.
        gain: share of held-out examples that were answered right at gate 1.
        task_loss: mean loss of their answers' tokens.
        retention: agreement with the base on held-out texts, at gate 1 beside irrelevant samples.
        change: paired difference of retention from the start of training.
    """

    step: int
    stage: str
    gain: Estimate
    task_loss: float
    retention: Estimate
    change: Estimate

    @classmethod
    def of(
        cls,
        counts: Counts,
        first: Sequence[float],
        *,
        step: int,
        stage: str,
        resamples: int,
        seed: int,
    ) -> Reading:
        """The reading of some counts.

        Args:
            counts: what was counted.
            first: agreement on each text at the start of training.
            step: optimizer steps that had been taken.
            stage: of the curriculum.
            resamples: of the intervals, which draw whole examples and texts.
            seed: of the intervals.
        """
        drawing: dict[str, Any] = {"resamples": resamples, "seed": seed}
        shares, weights = np.array(counts.shares), counts.positions
        return cls(
            step=step,
            stage=stage,
            gain=bootstrap(counts.right, **drawing),
            task_loss=counts.task_loss,
            retention=bootstrap(shares, weights=weights, **drawing),
            change=bootstrap(shares - np.array(first), weights=weights, **drawing),
        )

    def to_dict(self) -> dict[str, Any]:
        """What can be written as JSON."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> Reading:
        """Read what ``to_dict`` gave; other keys are left alone."""
        values = {field.name: held[field.name] for field in attrs.fields(cls)}
        for name in ("gain", "retention", "change"):
            values[name] = Estimate(**values[name])
        return cls(**values)

    @property
    def measured(self) -> Mapping[str, float]:
        """What a stage of a curriculum may wait for."""
        return {
            "accuracy": self.gain.value,
            "task_loss": self.task_loss,
            "retention": self.retention.value,
        }


def keeps(reading: Reading, spec: MonitorSpec) -> bool:
    """Whether what was measured lies within the tolerance, and not below the floor."""
    return reading.change.value >= -spec.tolerance and reading.retention.value >= spec.floor


def forgets(reading: Reading, spec: MonitorSpec) -> bool:
    """Whether retention has fallen for certain: its whole interval lies beyond the limit.

    What lies beyond the limit with a part of its interval alone may be chance.
    """
    return reading.change.high < -spec.tolerance or reading.retention.high < spec.floor


def limit(reading: Reading, spec: MonitorSpec) -> float:
    """The agreement that still counts as kept."""
    first = reading.retention.value - reading.change.value
    return max(first - spec.tolerance, spec.floor)


def front(readings: Sequence[Reading]) -> list[Reading]:
    """Those that no other one beats in both gain and retention, in the order of their steps."""
    return [
        one for one in readings if not any(_beats(other, one) for other in readings if other != one)
    ]


def _beats(one: Reading, other: Reading) -> bool:
    gain, kept = one.gain.value - other.gain.value, one.retention.value - other.retention.value
    if gain == 0 and kept == 0:  # alike in both: of the lower loss, or else the later one
        return (-one.task_loss, one.step) > (-other.task_loss, other.step)
    return gain >= 0 and kept >= 0


def best(readings: Sequence[Reading], spec: MonitorSpec) -> Reading:
    """The one of most gain among those that keep retention, or the one of most retention.

    Among equal gains it is the one of more retention, then of the lower loss, then the later.
    """
    kept = [one for one in readings if keeps(one, spec)]
    if not kept:
        return max(readings, key=lambda one: (one.retention.value, one.gain.value, one.step))
    return max(kept, key=_rank)


def _rank(one: Reading) -> tuple[float, float, float, int]:
    return one.gain.value, one.retention.value, -one.task_loss, one.step
