"""The interface of what protects the base model's knowledge while a modality is trained."""

from __future__ import annotations

from abc import ABC
from typing import Annotated

import torch
from torch import Tensor, nn


class RetentionRegularizer(ABC):  # noqa: B024  # each method has a default: override any
    """A penalty, a constraint on updates, or both; override only what is needed.

    A retention batch is text (and images) of the base's own domain that carries an irrelevant
    sample of the new modality: *counterfactual* retention. With the modality absent the output
    is the base's by construction, and there is nothing to learn.

    Attributes:
        counterfactual: the kinds of irrelevant sample it wants in retention batches, of
            ``"silent"``, ``"noise"`` and ``"shuffled"``; empty if it needs no such batch.

    Laws:
        zero_at_base: the penalty is 0 where the outputs are the base's.
        nonnegative: a penalty is never below 0.
        mask_respected: positions whose mask is False have no effect.
        base_untouched: neither ``begin`` nor ``constrain`` changes the base.
    """

    counterfactual: tuple[str, ...] = ()

    def begin(self, model: nn.Module) -> None:
        """Called once before the first step, with the SafeModel about to be trained."""
        return None

    def penalty(
        self,
        logits: Annotated[Tensor, "batch length vocabulary"],
        base_logits: Annotated[Tensor, "batch length vocabulary"],
        mask: Annotated[Tensor, "batch length"],
    ) -> Tensor | None:
        """A scalar to add to the loss, or None.

        Args:
            logits: of the SAFE model with the irrelevant sample and its gate open.
            base_logits: of the base on the same text, without gradient.
            mask: True at the positions that count.
        """
        return None

    def constrain(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after each optimizer step; may change the trainable parameters in place."""
        return None
