"""Counterfactual distillation: with an irrelevant sample, say what the base says without one.

``T^2 * mean_positions KL(softmax(base / T) || softmax(safe / T))``, Hinton et al. 2015
(arXiv:1503.02531), on retention text that carries a sample which has nothing to do with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from safe_framework import RetentionRegularizer
from safe_framework.interfaces.retention import Comparison, LogitComparison


class DistillationRegularizer(RetentionRegularizer):
    """Distil the open-gate model towards the base.

    Args:
        temperature: softens both distributions; 1 leaves them as they are.
        counterfactual: kinds of irrelevant sample that retention batches carry in turn;
            ``"foreign"`` ones come from the file that the recipe's ``[data]`` names.
    """

    def __init__(
        self,
        *,
        temperature: float = 3.0,
        counterfactual: Sequence[Literal["silent", "noise", "shuffled", "foreign"]] = (
            "silent",
            "noise",
            "shuffled",
        ),
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"`temperature` must be above 0, not {temperature}")
        if not counterfactual:
            raise ValueError("`counterfactual` must name at least one kind of sample")
        self.temperature = temperature
        self.temperatures = (temperature,)
        self.counterfactual = tuple(counterfactual)

    def penalty(self, logits: Tensor, base_logits: Tensor, mask: Tensor) -> Tensor:
        """Mean divergence over the positions that count, times the squared temperature."""
        return self.penalty_of(LogitComparison(logits, base_logits, mask))

    def penalty_of(self, comparison: Comparison) -> Tensor:
        """The same of a comparison, which need not make logits."""
        return comparison.divergence(self.temperature) * self.temperature**2
