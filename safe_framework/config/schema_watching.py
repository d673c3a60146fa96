"""The tables of a recipe that say how training is watched, and in which stages it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from safe_framework.config.validators import above, at_least, below, not_empty, part, share


@attrs.frozen
class ForgetSpec:
    """``on_forget`` of ``[monitor]``: what is done when the base's answers are being lost.

    Attributes:
        rollback: go back to the last adapter that kept them.
        learning_rate: factor on every learning rate from then on.
        retention_weight: factor on the weights of all ``[[retention]]`` from then on.
    """

    rollback: bool = True
    learning_rate: float = attrs.field(default=0.5, validator=share)
    retention_weight: float = attrs.field(default=2.0, validator=at_least(1))


@attrs.frozen
class MonitorSpec:
    """``[monitor]``: measure gain and retention while training goes on, and defend retention.

    Attributes:
        eval_steps: steps between two measurements.
        held_out: share of ``train`` and of ``retention`` that is kept from training to measure
            on, where ``[data]`` names no ``validation`` and no ``retention_validation``.
        max_examples: examples measured each time, at most; 0 for all.
        max_texts: texts measured each time, at most; 0 for all.
        tolerance: how much less agreement than at the start still counts as kept.
        floor: agreement below which nothing counts as kept, whatever it was at the start.
        patience: measurements without better gain after which training stops; 0 never stops it.
        max_rollbacks: after one more than this training stops.
        on_forget: what is done when retention has fallen.
    """

    eval_steps: int = attrs.field(default=50, validator=at_least(1))
    held_out: float = attrs.field(default=0.1, validator=part)
    max_examples: int = attrs.field(default=200, validator=at_least(0))
    max_texts: int = attrs.field(default=200, validator=at_least(0))
    tolerance: float = attrs.field(default=0.005, validator=below(1))
    floor: float = attrs.field(default=0.0, validator=below(1))
    patience: int = attrs.field(default=10, validator=at_least(0))
    max_rollbacks: int = attrs.field(default=5, validator=at_least(0))
    on_forget: ForgetSpec = attrs.field(factory=ForgetSpec)


@attrs.frozen
class UntilSpec:
    """``until`` of a stage: it ends once all that is given here was measured.

    Attributes:
        accuracy: at least so many held-out answers are right, as a share.
        task_loss: the loss on held-out answers is at most this.
        retention: agreement with the base is at least this.
    """

    accuracy: float | None = attrs.field(default=None, validator=attrs.validators.optional(share))
    task_loss: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(above(0))
    )
    retention: float | None = attrs.field(default=None, validator=attrs.validators.optional(share))


@attrs.frozen
class StageSpec:
    """``[[curriculum]]``: one stage of training; they follow each other.

    Attributes:
        name: for messages and the report.
        train: data of its own, instead of ``train`` of ``[data]``.
        where: only rows whose fields have these values; an array means any of them.
        retention_weight: factor on the weights of all ``[[retention]]``; 0 leaves them out.
        learning_rate: factor on every learning rate.
        steps: it ends after so many; the last stage has none and lasts until training ends.
        until: it ends earlier, once this was measured; needs ``[monitor]``.
    """

    name: str = ""
    train: str | None = attrs.field(default=None, validator=attrs.validators.optional(not_empty))
    where: Mapping[str, Any] = attrs.field(factory=dict)
    retention_weight: float = attrs.field(default=1.0, validator=at_least(0))
    learning_rate: float = attrs.field(default=1.0, validator=above(0))
    steps: int | None = attrs.field(default=None, validator=attrs.validators.optional(at_least(1)))
    until: UntilSpec | None = None
