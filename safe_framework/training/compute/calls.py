"""Calls of a model in a training step, several as one where they fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs
import torch
from torch import Tensor, nn

from safe_framework.interfaces.retention import Comparison, LogitComparison
from safe_framework.interfaces.types import FRAMES, FRAMES_MASK, PRESENT
from safe_framework.training.compute.chunked_vocabulary import (
    Expected,
    cross_entropy,
    expected_together,
    with_slope,
)
from safe_framework.training.retention.teacher import TaughtWords

# What a model says at some places of a call, as logits or as what would make them.


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


_TEXT = ("input_ids", "attention_mask")
_FRAMES = (PRESENT, FRAMES, FRAMES_MASK)


@attrs.frozen(eq=False)
class Call:
    """One call, and where it is read.

    Attributes:
        inputs: of the model.
        places: True at the words that are read, (batch, length).
        temperatures: at which the softmax of these words will be asked for.
        begun: what enters the first fused layer, for each row's real positions, each
            (length of the row, hidden); None where the call begins at its first layer.
    """

    inputs: Mapping[str, Tensor]
    places: Tensor
    temperatures: Sequence[float] = ()
    begun: Sequence[Tensor] | None = None


@attrs.frozen(eq=False)
class Term:
    """A part of a loss: what is asked of the model, and what its words are worth.

    Attributes:
        call: of the model.
        loss: of the words at its places.
    """

    call: Call
    loss: Callable[[Words], Tensor]


def together(calls: Sequence[Call], padding: float) -> list[list[int]]:
    """Which calls can be made as one, by number.

    Args:
        calls: in order.
        padding: how many positions more than their own one call may have, as a share of them.
    """
    groups: list[list[int]] = []
    for number, call in enumerate(calls):
        for group in groups:
            others = [calls[i] for i in group]
            if _alike(others[0], call) and _padding([*others, call]) <= padding:
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def joined(calls: Sequence[Call]) -> Call:
    """Several calls that are alike as one, row after row."""
    if len(calls) == 1:
        return calls[0]
    first = calls[0]
    begun = [row for call in calls for row in call.begun or ()]
    return Call(
        {key: _stacked([call.inputs[key] for call in calls]) for key in first.inputs},
        _stacked([call.places for call in calls]),
        begun=None if first.begun is None else begun,
    )


def _alike(one: Call, other: Call) -> bool:
    """Whether both have the same inputs, filled up on the right or to be filled up there."""
    known = all(key in _TEXT or key.rpartition("__")[2] in _FRAMES for key in one.inputs)
    return (
        known
        and one.inputs.keys() == other.inputs.keys()
        and (one.begun is None) == (other.begun is None)
        and all(_fit(one.inputs[key], other.inputs[key]) for key in one.inputs)
    )


def _fit(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ in their first two axes at most."""
    return one.shape[2:] == other.shape[2:] and one.dtype == other.dtype


def _padding(calls: Sequence[Call]) -> float:
    """Positions that filling rows up to the longest call adds, as a share of all others."""
    rows = sum(len(call.places) for call in calls)
    longest = max(call.places.shape[1] for call in calls)
    return rows * longest / sum(call.places.numel() for call in calls) - 1


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Rows of all, filled up with 0 on the right of their second axis, if they have one."""
    if tensors[0].ndim == 1:
        return torch.cat(list(tensors))
    longest = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([_filled(tensor, longest) for tensor in tensors])


def _filled(tensor: Tensor, length: int) -> Tensor:
    beyond = (0, 0) * (tensor.ndim - 2)
    return nn.functional.pad(tensor, (*beyond, 0, length - tensor.shape[1]))


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
