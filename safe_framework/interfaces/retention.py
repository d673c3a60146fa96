"""The interface of what protects the base model's knowledge while a modality is trained."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.interfaces.retention_comparison import Comparison
    from safe_framework.interfaces.retention_retention_store import RetentionStore


class RetentionRegularizer(ABC):  # noqa: B024  # each method has a default: override any
    """A penalty, a constraint on updates, or both; override only what is needed.

    A retention batch is text (and images) of the base's own domain that carries an irrelevant
    sample of the new modality: *counterfactual* retention. With the modality absent the output
    is the base's by construction, and there is nothing to learn.

    Attributes:
        counterfactual: the kinds of irrelevant sample it wants beside retention texts, of
            ``"silent"``, ``"noise"``, ``"shuffled"`` and ``"foreign"``; empty if it needs no
            such text.
        every_step: whether it wants a batch of them at each step, for ``penalty``; if not, they
            are given to ``begin`` alone, and a step costs no forward pass more.
        lets_the_base_change: whether it can defend a base that is trained too, as in stage B.
        temperatures: at which ``penalty_of`` takes a divergence: what the base has to say at them
            is computed before the first step, where it is kept.

    Laws:
        zero_at_base: the penalty is 0 where the outputs are the base's, and the parameter
            penalty is 0 where training starts.
        nonnegative: a penalty is never below 0.
        one_penalty: ``penalty_of`` a comparison is the ``penalty`` of its logits.
        mask_respected: positions whose mask is False have no effect.
        base_untouched: neither ``begin`` nor ``constrain`` changes the base.
    """

    counterfactual: tuple[str, ...] = ()
    every_step: bool = True
    lets_the_base_change: bool = True
    temperatures: tuple[float, ...] = ()

    def begin(
        self, model: SafeModel, examples: Sequence[Mapping[str, Tensor]], store: RetentionStore
    ) -> None:
        """Called once before the first step, and again when a killed run goes on.

        Args:
            model: about to be trained, in eval mode, its gates as they will be in the end.
            examples: every retention text once, alone and without padding, beside an irrelevant
                sample, the kinds of ``counterfactual`` in turn: arguments of ``model``. Each is
                made when it is read.
            store: what is computed here from the start of training goes through it, since a run
                that goes on no longer has that start.
        """
        return None

    def penalty(
        self,
        logits: Annotated[Tensor, "batch length vocabulary"],
        base_logits: Annotated[Tensor, "batch length vocabulary"],
        mask: Annotated[Tensor, "batch length"],
    ) -> Tensor | None:
        """A scalar to add to the loss, or None: a mean over the positions that count.

        A step may be computed in parts, by several devices: each part counts by how many such
        positions it has.

        Args:
            logits: of the SAFE model with the irrelevant sample and its gate open.
            base_logits: of the base on the same text, without gradient.
            mask: True at the positions that count.

        Training gives the words of all its texts as one row; they are to be taken one by one.
        """
        return None

    def penalty_of(self, comparison: Comparison) -> Tensor | None:
        """What training asks for: ``penalty`` of a comparison's logits, if not overridden.

        Override it, beside ``penalty``, where all that is needed of the logits is a divergence:
        ``comparison.divergence(T)`` does not make them.

        Args:
            comparison: of the words of a step's texts, where all of them count.
        """
        return self.penalty(comparison.logits, comparison.base_logits, comparison.mask)

    def parameter_penalty(self) -> Tensor | None:
        """A scalar to add to the loss at each step that depends on the parameters alone."""
        return None

    def constrain(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after each optimizer step; may change the trainable parameters in place."""
        return None
