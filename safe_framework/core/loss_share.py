"""The part that one call's loss has in the loss of a training step.

A Trainer computes a step in parts, one after another, and tells each call by
``num_items_in_batch`` over how many labelled tokens the step's mean is taken. Bases that
transformers gives its common loss divide by that number; others ignore it and give the mean over
their own tokens, so that parts with few tokens would count as much as those with many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.base_errors import base_errors
from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.errors import KeywordError, UnsupportedBaseError
from safe_framework.interfaces.types import IGNORED

COUNT = "num_items_in_batch"
"""The keyword by which a Trainer tells a call the labelled tokens of its step."""


def check_not_alone(args: Sequence[Any], inputs: Mapping[str, Any]) -> None:
    """Refuse labels without anything that they are the labels of.

    Raises:
        KeywordError: there is neither an argument nor a tensor beside them.
    """
    if args or any(isinstance(value, Tensor) for key, value in inputs.items() if key != COUNT):
        return
    raise KeywordError(
        "the call has `labels` and neither texts nor samples: a Trainer drops the columns that "
        "it does not find in a signature",
        hint="set `remove_unused_columns=False` in its TrainingArguments",
    )


@attrs.frozen
class LossShare:
    """What a call's loss is multiplied by.

    Attributes:
        factor: None leaves it as it is.
    """

    factor: Tensor | float | None = None

    @classmethod
    def taken(
        cls,
        inputs: dict[str, Any],
        labels: Tensor,
        base: nn.Module,
    ) -> LossShare:
        """The share that ``num_items_in_batch`` asks for, taken out of the inputs.

        Args:
            inputs: of the call.
            labels: of the call, (batch, length).
            base: which computes the loss, and ignores that number.
        """
        count = inputs.pop(COUNT)
        scored = labels if decodes_separately(base) else labels[..., 1:]
        return cls((scored != IGNORED).sum() / count)

    def of(self, outputs: Any) -> Any:
        """What the base returned, its loss being the share."""
        if self.factor is None:
            return outputs
        if isinstance(outputs, tuple):
            return (outputs[0] * self.factor, *outputs[1:])
        outputs.loss = outputs.loss * self.factor
        return outputs


@torch.no_grad()
def reads_count(base: nn.Module, example: Mapping[str, Any]) -> bool:
    """Whether a base's loss depends on ``num_items_in_batch``, as two tiny calls show.

    No signature says it: some bases take any keyword and ignore this one. Where the base reads it,
    it computes the loss, so that a call without samples keeps the base's bits.

    Args:
        base: a transformers model.
        example: inputs on which it runs.
    """
    labels = example.get("decoder_input_ids", example.get("input_ids"))
    try:
        with base_errors():
            counts = (1, 2)
            once, twice = (base(**example, labels=labels, **{COUNT: one}).loss for one in counts)
    except UnsupportedBaseError:  # whatever it makes of a keyword that it does not know
        return False
    return not torch.equal(once, twice)
