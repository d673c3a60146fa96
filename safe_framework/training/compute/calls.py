"""The model calls of a training step, merged where they fit, and what is predicted in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.padding import concatenate_rows, pad_to_length
from safe_framework.interfaces.retention import Comparison, LogitComparison
from safe_framework.interfaces.types import FRAMES, FRAMES_MASK, FROM, PRESENT
from safe_framework.training.compute.chunked_vocabulary import (
    SoftmaxStatistics,
    cross_entropy,
    softmax_statistics_of_all,
    with_custom_gradient,
)
from safe_framework.training.retention.teacher import TeacherPredictions

_TEXT = ("input_ids", "attention_mask")
_SAMPLES = (PRESENT, FRAMES, FRAMES_MASK)
_FRAMES = (*_SAMPLES, FROM)


@attrs.frozen(eq=False)
class ForwardCall:
    """One call of the model, and where its predictions are read.

    Attributes:
        inputs: of the model.
        positions: True where a prediction is read, (batch, length).
        temperatures: at which the softmax of these predictions will be asked for.
        prefix_states: what enters the first fused layer, for each row's real positions, each
            (length of the row, hidden); None where the call starts at the base's first layer.
        pictures: whether its rows have some.
        past: the prompts' keys and values behind which its rows begin, by kind and layer, each
            (length of the prompt, heads, width); None where they begin at their first token.
    """

    inputs: Mapping[str, Tensor]
    positions: Tensor
    temperatures: Sequence[float] = ()
    prefix_states: Sequence[Tensor] | None = None
    pictures: bool = False
    past: Sequence[Mapping[str, Tensor]] | None = None


@attrs.frozen(eq=False)
class LossTerm:
    """A term of the loss: a call of the model, and the loss of its predictions.

    Attributes:
        call: of the model.
        loss: of the predictions at its positions.
    """

    call: ForwardCall
    loss: Callable[[Predictions], Tensor]


def group_calls(calls: Sequence[ForwardCall], padding: float) -> list[list[int]]:
    """Which calls can be merged, as groups of their numbers.

    Args:
        calls: in order.
        padding: positions that a merged call may have more than its parts, as a share of theirs.
    """
    groups: list[list[int]] = []
    for number, call in enumerate(calls):
        for group in groups:
            others = [calls[i] for i in group]
            if _can_merge(others[0], call) and _padding_share([*others, call]) <= padding:
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def merge_calls(calls: Sequence[ForwardCall]) -> ForwardCall:
    """Several calls with the same inputs as one, row after row."""
    if len(calls) == 1:
        return calls[0]
    calls = _with_equal_slots(calls)
    first = calls[0]
    prefix_states = [row for call in calls for row in call.prefix_states or ()]
    return ForwardCall(
        {key: concatenate_rows([call.inputs[key] for call in calls]) for key in first.inputs},
        concatenate_rows([call.positions for call in calls]),
        prefix_states=None if first.prefix_states is None else prefix_states,
        pictures=any(call.pictures for call in calls),
        past=None if first.past is None else [row for call in calls for row in call.past or ()],
    )


def _with_equal_slots(calls: Sequence[ForwardCall]) -> Sequence[ForwardCall]:
    """The calls with slots for samples in each, and frames of one length, if some have several."""
    names = {
        key.rpartition("__")[0]
        for call in calls
        for key, value in call.inputs.items()
        if key.endswith(f"__{PRESENT}") and value.ndim > 1
    }
    if not names:
        return calls
    inputs = [dict(call.inputs) for call in calls]
    for name in names:
        for own in inputs:
            if own[f"{name}__{PRESENT}"].ndim == 1:
                own |= {f"{name}__{key}": own[f"{name}__{key}"].unsqueeze(1) for key in _SAMPLES}
        for key in (f"{name}__{FRAMES}", f"{name}__{FRAMES_MASK}"):
            longest = max(own[key].shape[2] for own in inputs)
            for own in inputs:  # the slots themselves are padded when calls are put together
                flat = pad_to_length(own[key].flatten(0, 1), longest)
                own[key] = flat.view(*own[key].shape[:2], *flat.shape[1:])
    return [attrs.evolve(call, inputs=own) for call, own in zip(calls, inputs, strict=True)]


def _can_merge(one: ForwardCall, other: ForwardCall) -> bool:
    """Whether both have the same inputs, all of which can be padded on the right."""
    known = all(key in _TEXT or key.rpartition("__")[2] in _FRAMES for key in one.inputs)
    return (
        known
        and one.inputs.keys() == other.inputs.keys()
        and (one.prefix_states is None) == (other.prefix_states is None)
        and (one.past is None) == (other.past is None)
        and all(_same_beyond_length(one.inputs[key], other.inputs[key]) for key in one.inputs)
    )


def _same_beyond_length(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type and width; texts, frames and slots can be padded."""
    width = one.shape[-1] if one.is_floating_point() else 0
    other_width = other.shape[-1] if other.is_floating_point() else 0
    return width == other_width and one.dtype == other.dtype


def _padding_share(calls: Sequence[ForwardCall]) -> float:
    """Positions that padding rows to the longest call adds, as a share of all others."""
    rows = sum(len(call.positions) for call in calls)
    longest = max(call.positions.shape[1] for call in calls)
    return rows * longest / sum(call.positions.numel() for call in calls) - 1


class Predictions(ABC):
    """What a model predicts at some positions of a call, row after row."""

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """(tokens, vocabulary)."""

    @abstractmethod
    def cross_entropy(self, targets: Tensor) -> Tensor:
        """Summed over the positions, a scalar.

        Args:
            targets: token ids, (tokens,).
        """

    @abstractmethod
    def compare_with(self, base: TeacherPredictions) -> Comparison:
        """These predictions and the base's at the same positions."""


@attrs.frozen(eq=False)
class LogitPredictions(Predictions):
    """Predictions whose logits were computed."""

    logits: Tensor

    def cross_entropy(self, targets: Tensor) -> Tensor:
        """As the formula has it, in float32."""
        return nn.functional.cross_entropy(self.logits.float(), targets, reduction="sum")

    def compare_with(self, base: TeacherPredictions) -> Comparison:
        """All of them, as one row."""
        mask = torch.ones(1, len(self.logits), dtype=torch.bool, device=self.logits.device)
        return LogitComparison(self.logits.unsqueeze(0), base.logits.unsqueeze(0), mask)


@attrs.frozen(eq=False)
class HiddenPredictions(Predictions):
    """Predictions of which only the input of the output embeddings was computed.

    Attributes:
        hidden: (tokens, hidden).
        head: the output embeddings, which do not train and alone make the logits.
        softmax: their softmax at a temperature.
    """

    hidden: Tensor
    head: nn.Linear
    softmax: Callable[[float], SoftmaxStatistics]

    @property
    def logits(self) -> Tensor:
        """Computed when they are read."""
        logits: Tensor = self.head(self.hidden.unsqueeze(0))[0]
        return logits

    def cross_entropy(self, targets: Tensor) -> Tensor:
        """The same without the logits."""
        return cross_entropy(self.hidden, self.head, targets, self.softmax(1.0))

    def compare_with(self, base: TeacherPredictions) -> Comparison:
        """All of them."""
        return HiddenComparison(self, base)


def hidden_predictions(
    hidden: Sequence[Tensor], head: nn.Linear, temperatures: Sequence[Sequence[float]]
) -> list[HiddenPredictions]:
    """Predictions of several calls, whose softmaxes are computed together at the first request.

    Args:
        hidden: of each call, (tokens, hidden).
        head: the output embeddings.
        temperatures: at which each call's softmax will be asked for.
    """
    found: dict[tuple[int, float], SoftmaxStatistics] = {}

    def softmax(call: int, temperature: float) -> SoftmaxStatistics:
        """Of one call."""
        if (call, temperature) not in found:
            wanted = {(one, t) for one, each in enumerate(temperatures) for t in each}
            missing = sorted((wanted | {(call, temperature)}) - found.keys())
            asked = [(hidden[one].detach(), t) for one, t in missing]
            found.update(zip(missing, softmax_statistics_of_all(asked, head), strict=True))
        return found[call, temperature]

    def of(call: int) -> Callable[[float], SoftmaxStatistics]:
        """The softmax of a call by temperature."""
        return lambda temperature: softmax(call, temperature)

    return [HiddenPredictions(one, head, of(call)) for call, one in enumerate(hidden)]


class HiddenStatePredictions(Protocol):
    """One side's predictions, of which the input of the output embeddings is known."""

    @property
    def hidden(self) -> Tensor:
        """What enters them, (tokens, hidden)."""

    @property
    def logits(self) -> Tensor:
        """What comes out, (tokens, vocabulary)."""

    def softmax(self, temperature: float) -> SoftmaxStatistics:
        """The softmax of these predictions."""


@attrs.frozen(eq=False)
class HiddenComparison(Comparison):
    """A comparison of what enters the output embeddings, which alone make the logits.

    Attributes:
        ours: the model's predictions.
        base: the base's at the same positions.
    """

    ours: HiddenStatePredictions
    base: HiddenStatePredictions

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
        """All positions count."""
        hidden = self.ours.hidden
        return torch.ones(1, len(hidden), dtype=torch.bool, device=hidden.device)

    def divergence(self, temperature: float) -> Tensor:
        """The same without the logits.

        ``KL(base || ours) = lse(z_ours) - lse(z_base) - (h_ours - h_base) . E_base[W] / T`` where
        ``z = W h / T``. Its gradient, for ``h_ours`` alone, is ``(E_ours[W] - E_base[W]) / T``.
        """
        hidden = self.ours.hidden
        ours, base = self.ours.softmax(temperature), self.base.softmax(temperature)
        difference = (hidden.detach() - self.base.hidden) * base.embedding
        each = ours.log_sum - base.log_sum - difference.double().sum(-1) / temperature
        gradient = (ours.embedding - base.embedding) / (temperature * len(each))
        value = each.clamp(min=0).mean().float()  # below 0 is rounding
        return with_custom_gradient(value, hidden, gradient)
