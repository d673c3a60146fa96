"""What a gate sweep found, the gate that it recommends, and its form on disk (``sweep.json``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import attrs
from cattrs.errors import BaseValidationError
from cattrs.preconf.json import make_converter

from safe_framework.errors import DataError
from safe_framework.evaluation.metrics import Estimate
from safe_framework.evaluation.results import Agreement

SWEEP = "sweep.json"


@attrs.frozen
class GatePoint:
    """One strength of the gate.

    Attributes:
        gate: from 0 (off) to 1.
        accuracy: share of test examples answered right.
        over_base: paired difference of it to the gate at 0.
        kept: how near texts beside irrelevant samples of every kind stay to the base.
        answers: to each test example.
    """

    gate: float
    accuracy: Estimate
    over_base: Estimate
    kept: Agreement
    answers: tuple[str, ...]


@attrs.frozen
class GateSweep:
    """Gain and retention over the strength of one modality's gate.

    Attributes:
        modality: whose gate was moved.
        points: by ascending gate; the first is 0.
        places: of the test examples, where they were read.
        budget: least share of unchanged next tokens that was asked for.
        texts: how many texts retention was measured on.
        resamples: of every interval.
        seed: of the intervals and the irrelevant samples.
    """

    modality: str
    points: tuple[GatePoint, ...]
    places: tuple[str, ...]
    budget: float
    texts: int
    resamples: int
    seed: int

    @property
    def recommended(self) -> GatePoint:
        """The point of most gain whose measured agreement is within the budget.

        Of equal gains, the one that keeps more; of equals in both, the smaller gate. The gate at 0
        keeps everything, so there always is one.
        """
        within = [point for point in self.points if point.kept.agreement.value >= self.budget]
        return max(within or self.points[:1], key=lambda point: (*_merits(point), -point.gate))

    @property
    def front(self) -> tuple[GatePoint, ...]:
        """The Pareto front: points than which no other gains more and keeps as much, or reverse."""
        return tuple(
            point
            for point in self.points
            if not any(_dominates(other, point) for other in self.points)
        )

    def at(self, gate: float) -> GatePoint | None:
        """The point of this gate, if it was measured."""
        return next((point for point in self.points if point.gate == gate), None)


def _merits(point: GatePoint) -> tuple[float, float]:
    return point.accuracy.value, point.kept.agreement.value


def _dominates(one: GatePoint, other: GatePoint) -> bool:
    pairs = list(zip(_merits(one), _merits(other), strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


_CONVERTER = make_converter()


def read_sweeps(folder: Path) -> dict[str, GateSweep]:
    """The sweeps of a run by modality; empty where none was made.

    Raises:
        DataError: the file is there and cannot be read.
    """
    path = folder / SWEEP
    if not path.is_file():
        return {}
    try:
        return _CONVERTER.loads(path.read_text("utf-8"), dict[str, GateSweep])
    except (ValueError, BaseValidationError) as error:
        raise DataError(
            f"`{path}` cannot be read as a gate sweep", hint="delete it and run `safe sweep` again"
        ) from error


def write_sweep(folder: Path, sweep: GateSweep) -> Path:
    """Put a sweep into the run's ``sweep.json``, beside those of other modalities."""
    kept: Mapping[str, GateSweep] = {**read_sweeps(folder), sweep.modality: sweep}
    whole = folder / f".{SWEEP}"  # renamed once it is written, so that a kill leaves no half file
    text = json.dumps(_CONVERTER.unstructure(kept), indent=2, ensure_ascii=False, allow_nan=False)
    whole.write_text(text + "\n", "utf-8")
    return whole.replace(folder / SWEEP)
