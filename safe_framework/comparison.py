"""What a model and its base say at the same words, for retention methods to compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Protocol

import attrs
import torch
from torch import Tensor, nn

from safe_framework.vocabulary_losses import Expected, expected, with_slope


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


class BaseWords(Protocol):
    """What the base makes of the words, each row after row."""

    @property
    def hidden(self) -> Tensor:
        """What enters the output embeddings, (words, hidden)."""

    def logits(self) -> Tensor:
        """(words, vocabulary)."""

    def expected(self, temperature: float) -> Expected:
        """Of the hidden states."""


@attrs.frozen(eq=False)
class HiddenComparison(Comparison):
    """A comparison of what enters the output embeddings, which alone make the logits.

    Attributes:
        hidden: of the model, (words, hidden).
        head: the output embeddings of both, which do not train.
        base: the same words as the base sees them.
    """

    hidden: Tensor
    head: nn.Linear
    base: BaseWords

    @property
    def logits(self) -> Tensor:
        """The model's, as one row."""
        logits: Tensor = self.head(self.hidden.unsqueeze(0))
        return logits

    @property
    def base_logits(self) -> Tensor:
        """The base's, as one row."""
        return self.base.logits().unsqueeze(0)

    @property
    def mask(self) -> Tensor:
        """All words count."""
        return torch.ones(1, len(self.hidden), dtype=torch.bool, device=self.hidden.device)

    def divergence(self, temperature: float) -> Tensor:
        """The same without the logits.

        ``KL(base || ours) = lse(z_ours) - lse(z_base) - (h_ours - h_base) . E_base[W] / T`` where
        ``z = W h / T``. Its gradient, for ``h_ours`` alone, is ``(E_ours[W] - E_base[W]) / T``.
        """
        ours = expected(self.hidden.detach(), self.head, temperature)
        base, before = self.base.expected(temperature), self.base.hidden
        moved = (self.hidden.detach() - before) * base.embedding
        each = ours.log_sum - base.log_sum - moved.double().sum(-1) / temperature
        slope = (ours.embedding - base.embedding) / (temperature * len(each))
        value = each.clamp(min=0).mean().float()  # below 0 is rounding
        return with_slope(value, self.hidden, slope)
