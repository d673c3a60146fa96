"""Factors on the learning rates and on retention's weight, which change while training goes on."""

from __future__ import annotations

from typing import Any

import attrs
from transformers import TrainerCallback


@attrs.define
class Factors:
    """What one part of training multiplies by.

    Attributes:
        rate: every learning rate.
        retention: the weight of every retention method.
    """

    rate: float = 1.0
    retention: float = 1.0


@attrs.define
class Dials:
    """The factors of all who may turn them.

    Attributes:
        stage: of the curriculum's present stage.
        monitor: of the retention monitor.
    """

    stage: Factors = attrs.field(factory=Factors)
    monitor: Factors = attrs.field(factory=Factors)

    @property
    def rate(self) -> float:
        """The factor on every learning rate."""
        return self.stage.rate * self.monitor.rate

    @property
    def retention(self) -> float:
        """The factor on the weight of every retention method."""
        return self.stage.retention * self.monitor.retention


class RateDial(TrainerCallback):
    """Turns the rates around each optimizer step, so that the schedule's own stay what they are.

    Args:
        dials: read before each step.
    """

    def __init__(self, dials: Dials) -> None:
        self.dials = dials
        self._own: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Multiply the scheduled rates."""
        groups = kwargs["optimizer"].param_groups
        self._own = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * self.dials.rate

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the scheduled rates back."""
        for group, own in zip(kwargs["optimizer"].param_groups, self._own, strict=True):
            group["lr"] = own
