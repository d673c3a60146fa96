"""How open a gate is at each step of training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from safe_framework.core.model import SafeModel

if TYPE_CHECKING:
    from safe_framework.config.schema import GateSpec


def gate_at(step: int, spec: GateSpec) -> float:
    """The gate before update ``step`` (counted from 0), from 0 up to ``spec.value``.

    A gate at exactly 0 would train nothing, so the first step is already a little open.
    """
    if spec.schedule == "constant" or step + 1 >= spec.warmup_steps:
        return spec.value
    progress = (step + 1) / spec.warmup_steps
    if spec.schedule == "cosine":
        progress = 0.5 * (1 - math.cos(math.pi * progress))
    elif spec.schedule == "step":
        progress = (math.floor(progress * spec.stairs) + 1) / (spec.stairs + 1)
    return spec.value * progress


class GateSchedule(TrainerCallback):
    """Sets the gates before each step, from the step alone, so that resuming needs no state."""

    def __init__(self, model: SafeModel, specs: dict[str, GateSpec]) -> None:
        self.model, self.specs = model, specs

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the gates as far as this step wants."""
        for name, spec in self.specs.items():
            self.model.set_gate(gate_at(state.global_step, spec), name)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the gates at their final value."""
        for name, spec in self.specs.items():
            self.model.set_gate(spec.value, name)
