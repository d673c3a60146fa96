"""What a model says at some places of a call, as logits or as what would make them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor, nn

from safe_framework.interfaces.retention_comparison import (
    Comparison,
    HiddenComparison,
    LogitComparison,
)
from safe_framework.training.compute.chunked_vocabulary import (
    Expected,
    cross_entropy,
    expected_together,
)
from safe_framework.training.retention.teacher import TaughtWords


class Words(ABC):
    """The words at some places, row after row."""

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """(words, vocabulary)."""

    @abstractmethod
    def cross_entropy(self, targets: Tensor) -> Tensor:
        """Summed over the words, a scalar.

        Args:
            targets: token ids, (words,).
        """

    @abstractmethod
    def beside(self, base: TaughtWords) -> Comparison:
        """The same words as the base says them, at each place."""


@attrs.frozen(eq=False)
class LogitWords(Words):
    """Words whose logits are at hand."""

    logits: Tensor

    def cross_entropy(self, targets: Tensor) -> Tensor:
        """As the formula has it, in float32."""
        return nn.functional.cross_entropy(self.logits.float(), targets, reduction="sum")

    def beside(self, base: TaughtWords) -> Comparison:
        """All of them, as one row."""
        mask = torch.ones(1, len(self.logits), dtype=torch.bool, device=self.logits.device)
        return LogitComparison(self.logits.unsqueeze(0), base.logits.unsqueeze(0), mask)


@attrs.frozen(eq=False)
class HiddenWords(Words):
    """Words of which there is only what enters the output embeddings.

    Attributes:
        hidden: (words, hidden).
        head: the output embeddings, which do not train and alone make the logits.
        expected: their softmax at a temperature.
    """

    hidden: Tensor
    head: nn.Linear
    expected: Callable[[float], Expected]

    @property
    def logits(self) -> Tensor:
        """Made now."""
        logits: Tensor = self.head(self.hidden.unsqueeze(0))[0]
        return logits

    def cross_entropy(self, targets: Tensor) -> Tensor:
        """The same without the logits."""
        return cross_entropy(self.hidden, self.head, targets, self.expected(1.0))

    def beside(self, base: TaughtWords) -> Comparison:
        """All of them."""
        return HiddenComparison(self, base)


def hidden_words(
    hidden: Sequence[Tensor], head: nn.Linear, temperatures: Sequence[Sequence[float]]
) -> list[HiddenWords]:
    """Words of several calls, whose softmaxes are read together when the first one is asked for.

    Args:
        hidden: of each call, (words, hidden).
        head: the output embeddings.
        temperatures: at which each call's softmax will be asked for.
    """
    found: dict[tuple[int, float], Expected] = {}

    def expected(call: int, temperature: float) -> Expected:
        """Of one call."""
        if (call, temperature) not in found:
            wanted = {(one, t) for one, each in enumerate(temperatures) for t in each}
            missing = sorted((wanted | {(call, temperature)}) - found.keys())
            asked = [(hidden[one].detach(), t) for one, t in missing]
            found.update(zip(missing, expected_together(asked, head), strict=True))
        return found[call, temperature]

    def of(call: int) -> Callable[[float], Expected]:
        """The softmax of a call by temperature."""
        return lambda temperature: expected(call, temperature)

    return [HiddenWords(one, head, of(call)) for call, one in enumerate(hidden)]
