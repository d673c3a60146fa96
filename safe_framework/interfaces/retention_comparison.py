"""What a model and its base say at the same words, for retention methods to compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Protocol

import attrs
import torch
from torch import Tensor, nn

from safe_framework.training.compute.chunked_vocabulary import Expected, with_slope


class Comparison(ABC):
    """The words of a step's texts, as the model sees them and as its base does."""

    @property
    @abstractmethod
    def logits(self) -> Annotated[Tensor, "batch length vocabulary"]:
        """The model's."""

    @property
    @abstractmethod
    def base_logits(self) -> Annotated[Tensor, "batch length vocabulary"]:
        """The base's, without gradient."""

    @property
    @abstractmethod
    def mask(self) -> Annotated[Tensor, "batch length"]:
        """True at the positions that count."""

    @abstractmethod
    def divergence(self, temperature: float) -> Tensor:
        """``mean KL(softmax(base / T) || softmax(ours / T))`` over positions that count, in nats.

        Args:
            temperature: T, above 0.
        """


@attrs.frozen(eq=False)
class LogitComparison(Comparison):
    """A comparison of logits that are at hand, (batch, length, vocabulary)."""

    logits: Tensor
    base_logits: Tensor
    mask: Tensor

    def divergence(self, temperature: float) -> Tensor:
        """As the formula has it, in float32."""
        ours = (self.logits[self.mask].float() / temperature).log_softmax(-1)
        base = (self.base_logits[self.mask].float() / temperature).log_softmax(-1)
        return nn.functional.kl_div(ours, base, log_target=True, reduction="batchmean")


class Said(Protocol):
    """Words that one side says, of which there is what enters the output embeddings."""

    @property
    def hidden(self) -> Tensor:
        """What enters them, (words, hidden)."""

    @property
    def logits(self) -> Tensor:
        """What comes out, (words, vocabulary)."""

    def expected(self, temperature: float) -> Expected:
        """The softmax of these words."""


@attrs.frozen(eq=False)
class HiddenComparison(Comparison):
    """A comparison of what enters the output embeddings, which alone make the logits.

    Attributes:
        ours: the words as the model says them.
        base: the same words as the base says them.
    """

    ours: Said
    base: Said

    @property
    def logits(self) -> Tensor:
        """The model's, as one row."""
        return self.ours.logits.unsqueeze(0)

    @property
    def base_logits(self) -> Tensor:
        """The base's, as one row."""
        return self.base.logits.unsqueeze(0)

    @property
    def mask(self) -> Tensor:
        """All words count."""
        hidden = self.ours.hidden
        return torch.ones(1, len(hidden), dtype=torch.bool, device=hidden.device)

    def divergence(self, temperature: float) -> Tensor:
        """The same without the logits.

        ``KL(base || ours) = lse(z_ours) - lse(z_base) - (h_ours - h_base) . E_base[W] / T`` where
        ``z = W h / T``. Its gradient, for ``h_ours`` alone, is ``(E_ours[W] - E_base[W]) / T``.
        """
        hidden = self.ours.hidden
        ours, base = self.ours.expected(temperature), self.base.expected(temperature)
        moved = (hidden.detach() - self.base.hidden) * base.embedding
        each = ours.log_sum - base.log_sum - moved.double().sum(-1) / temperature
        slope = (ours.embedding - base.embedding) / (temperature * len(each))
        value = each.clamp(min=0).mean().float()  # below 0 is rounding
        return with_slope(value, hidden, slope)
