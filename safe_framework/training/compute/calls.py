"""Calls of a model in a training step, several as one where they fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.modality import FRAMES, FRAMES_MASK, PRESENT
from safe_framework.training.compute.calls_words import Words

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
