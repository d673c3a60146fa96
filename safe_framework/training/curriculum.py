"""Training in stages: which data, how much retention, how fast, and when to move on.

The place of a sample in the run is known beforehand; which sample stands there is only looked up
when its step is trained, since a stage may end on what was measured just before. So nothing that
a loader fetches in advance, in whatever process, can belong to another stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_framework.data.examples import Example
from safe_framework.errors import DataError
from safe_framework.training.sampling import balanced_order, shuffled_slice
from safe_framework.training.schedules import Scales, TrainingScales

if TYPE_CHECKING:
    from safe_framework.config.schema import StageSpec, TrainingSpec, UntilSpec

FILE = "curriculum.json"
_APART = 10_007  # between the seeds of two stages


class Curriculum:
    """The stages of a run and where it is in them.

    Args:
        stages: as the recipe gives them; at least one.
        members: for each stage, the places of its examples among all that are trained on.
        answers: of all examples that are trained on.
        spec: the recipe's ``[training]``.
        scales: turned at each change of stage.

    Attributes:
        starts: the step at which each stage that was entered began.
    """

    def __init__(
        self,
        stages: Sequence[StageSpec],
        members: Sequence[Sequence[int]],
        answers: Sequence[str],
        spec: TrainingSpec,
        scales: TrainingScales,
    ) -> None:
        self.stages, self.members, self.answers = stages, members, answers
        self.spec, self.scales = spec, scales
        self.starts = [0]
        self._orders: dict[int, list[int]] = {}
        self._turn()

    @property
    def number(self) -> int:
        """Which stage it is, counted from 0."""
        return len(self.starts) - 1

    @property
    def name(self) -> str:
        """What the present stage is called."""
        return self.stages[self.number].name or f"stage {self.number + 1}"

    def example_at(self, place: int, step_size: int) -> int:
        """Which example stands at a place of the run.

        Args:
            place: among all samples of the run, counted from 0.
            step_size: samples in a step, of all processes.
        """
        step = place // step_size
        stage = max(n for n, start in enumerate(self.starts) if start <= step)
        if stage not in self._orders:
            self._orders[stage] = self._order(stage, step_size)
        return self._orders[stage][place - self.starts[stage] * step_size]

    def _order(self, stage: int, step_size: int) -> list[int]:
        count = (self.spec.max_steps - self.starts[stage]) * step_size
        seed, places = self.spec.seed + stage * _APART, self.members[stage]
        if self.spec.balance:
            chosen = balanced_order(seed, [self.answers[place] for place in places], count)
        else:
            chosen = shuffled_slice(seed, 0, count, len(places))
        return [places[one] for one in chosen]

    def advance(self, step: int, measured: Mapping[str, float] | None = None) -> bool:
        """Move on to the next stage if the present one is over.

        Args:
            step: how many steps have been taken.
            measured: what was measured just now of accuracy, task loss and retention, if it was.
        """
        stage = self.stages[self.number]
        if self.number == len(self.stages) - 1:
            return False
        over = stage.steps is not None and step - self.starts[-1] >= stage.steps
        if not (over or (stage.until and measured and is_reached(stage.until, measured))):
            return False
        self.starts.append(step)
        self._turn()
        return True

    def _turn(self) -> None:
        stage = self.stages[self.number]
        self.scales.stage = Scales(stage.learning_rate, stage.retention_weight)

    def keep(self, checkpoint: Path) -> None:
        """Write into a checkpoint where the run is."""
        (checkpoint / FILE).write_text(json.dumps({"starts": self.starts}) + "\n", "utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Go on from where a checkpoint is."""
        self.starts = json.loads((checkpoint / FILE).read_text("utf-8"))["starts"]
        self._orders.clear()
        self._turn()


def is_reached(until: UntilSpec, measured: Mapping[str, float]) -> bool:
    """Whether all that a stage waits for was measured."""
    wanted = {key: getattr(until, key) for key in ("accuracy", "retention", "task_loss")}
    return all(
        measured[key] <= limit if key == "task_loss" else measured[key] >= limit
        for key, limit in wanted.items()
        if limit is not None
    )


def stage_indices(
    stage: StageSpec, examples: Sequence[Example], places: Sequence[int]
) -> list[int]:
    """Those of some places whose examples have the fields that a stage wants.

    Raises:
        DataError: none has; the message says what there is.
    """
    found = [place for place in places if _fits(stage.where, examples[place].fields)]
    if not found:
        field = next(iter(stage.where), "")
        values = sorted({repr(examples[place].fields.get(field)) for place in places})
        raise DataError(
            f"no training row is of the stage `{stage.name}`: {_shown(stage.where)}",
            hint=f"its rows have for `{field}`: {', '.join(values[:8])}",
        )
    return found


def _fits(where: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(
        any(fields.get(name) == one and type(fields.get(name)) is type(one) for one in _each(value))
        for name, value in where.items()
    )


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _shown(where: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` is {' or '.join(map(repr, _each(v)))}" for name, v in where.items())
