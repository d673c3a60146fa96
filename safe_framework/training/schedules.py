"""What changes with the steps of training: gates, learning rates, the weight of retention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
from transformers import TrainerCallback

from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import AUTO

if TYPE_CHECKING:
    from safe_framework.config.schema import GateSpec


@attrs.define
class Scales:
    """What one part of training multiplies by.

    Attributes:
        rate: every learning rate.
        retention: the weight of every retention method.
    """

    rate: float = 1.0
    retention: float = 1.0


@attrs.define
class TrainingScales:
    """The factors of every part that sets some.

    Attributes:
        stage: of the curriculum's present stage.
        monitor: of the retention monitor.
    """

    stage: Scales = attrs.field(factory=Scales)
    monitor: Scales = attrs.field(factory=Scales)

    @property
    def rate(self) -> float:
        """The factor on every learning rate."""
        return self.stage.rate * self.monitor.rate

    @property
    def retention(self) -> float:
        """The factor on the weight of every retention method."""
        return self.stage.retention * self.monitor.retention


class LearningRateScaler(TrainerCallback):
    """Scales the learning rates for each optimizer step, and restores the scheduled ones after it.

    Args:
        scales: read before each step.
    """

    def __init__(self, scales: TrainingScales) -> None:
        self.scales = scales
        self._scheduled: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Multiply the scheduled rates."""
        groups = kwargs["optimizer"].param_groups
        self._scheduled = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * self.scales.rate

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the scheduled rates back."""
        for group, rate in zip(kwargs["optimizer"].param_groups, self._scheduled, strict=True):
            group["lr"] = rate


def gate_at(step: int, spec: GateSpec) -> float:
    """The gate before update ``step`` (counted from 0), from 0 up to ``spec.value``.

    A gate at exactly 0 would train nothing, so the first step is already a little open. One that a
    relevance head will decide on is trained to be open.
    """
    value = 1.0 if isinstance(spec.value, str) else spec.value
    if spec.schedule == "constant" or step + 1 >= spec.warmup_steps:
        return value
    progress = (step + 1) / spec.warmup_steps
    if spec.schedule == "cosine":
        progress = 0.5 * (1 - math.cos(math.pi * progress))
    elif spec.schedule == "step":
        progress = (math.floor(progress * spec.stairs) + 1) / (spec.stairs + 1)
    return value * progress


class GateSchedule(TrainerCallback):
    """Sets the gates before each step, from the step alone, so that resuming needs no state."""

    def __init__(self, model: SafeModel, specs: dict[str, GateSpec]) -> None:
        self.model, self.specs = model, specs

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the gates as far as this step wants."""
        for name, spec in self.specs.items():
            self.model.set_gate(gate_at(state.global_step, spec), name)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the gates at their final value; one that waits for a head to be fitted at 1."""
        for name, spec in self.specs.items():
            undecided = spec.value == AUTO and self.model.modality(name).relevance is None
            self.model.set_gate(1.0 if undecided else spec.value, name)
