"""Several samples of one modality in one text, or windows of one sample: told apart by their place.

A batch in which a text has several carries them in slots: ``NAME__present`` is (batch, slots), and
every other tensor has (batch, slots, ...). Where no text has more than one, there is no such axis.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from safe_framework.interfaces.types import Frames, Tokens

_SAMPLES = (1.0, 0.5, 0.25, 0.125)
"""In radians a sample: the slowest tells some fifty in a row apart."""

_WINDOWS = tuple(2.0 ** (1 - power) for power in range(12))
"""In radians a window: the quickest tells neighbours apart, the slowest some three thousand."""


class SegmentVectors(nn.Module):
    """What says which of a text's samples a token is of: ``tokens + f(n) W`` for sample ``n``.

    ``f(n)`` holds ``sin(w n)`` and ``1 - cos(w n)`` for a few frequencies ``w`` (Vaswani et al.
    2017, arXiv:1706.03762), so that the first sample, ``n = 0``, has no vector and there is no
    last one. ``W`` starts at zero: what never trained on several hears them without an order.

    Args:
        hidden_size: width of a token.
        frequencies: ``w``, in radians a sample.

    Attributes:
        weight: ``W``, (features, hidden).
    """

    def __init__(self, hidden_size: int, frequencies: tuple[float, ...] = _SAMPLES) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.weight = nn.Parameter(torch.zeros(2 * len(frequencies), hidden_size))

    def forward(self, tokens: Tokens, number: Tensor) -> Tokens:
        """The tokens, with their vectors but for those of first samples, which keep their bits.

        Args:
            tokens: of all samples, (samples, tokens, hidden).
            number: of each among its text's, from 0, (samples,).
        """
        later = number > 0
        learning = torch.is_grad_enabled() and self.weight.requires_grad
        if not (learning or bool(later.any())):  # learning, ``W`` is to have its gradient, if of 0
            return tokens
        angles = number[:, None] * torch.tensor(self.frequencies, device=number.device)
        features = torch.cat([angles.sin(), 1 - angles.cos()], dim=-1)  # (samples, features)
        added = (features.to(self.weight.dtype) @ self.weight).unsqueeze(1)
        values = tokens.values
        moved = torch.where(later[:, None, None], values + added.to(values.dtype), values)
        return Tokens(moved, tokens.mask)


class TimeVectors(SegmentVectors):
    """The same for the windows of a sample: ``n`` is a window's beginning, in windows.

    Args:
        hidden_size: width of a token.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, _WINDOWS)


def is_segments(name: str) -> bool:
    """Whether a tensor of an adapter, ``NAME.KEY``, holds such vectors; it may lack them."""
    return name.partition(".")[2] in ("segments.weight", "times.weight")


def without_untaught(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors as they are written: without such vectors where they are zero."""
    return {
        name: tensor for name, tensor in tensors.items() if not is_segments(name) or tensor.any()
    }


def untaught(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for such vectors among a model's tensors, which is what an adapter without them has."""
    return {name: torch.zeros_like(tensors[name]) for name in tensors if is_segments(name)}


def numbers_in_rows(present: Tensor) -> Tensor:
    """Which sample of its text each one is that is present, from 0, row after row, (samples,).

    Args:
        present: (batch,), or (batch, slots).
    """
    slots = present.reshape(len(present), -1)
    counted: Tensor = (slots.cumsum(1) - 1)[slots]
    return counted


def joined(tokens: Tokens, rows: Tensor, number: Tensor) -> Tokens:
    """The tokens of each row's samples behind each other, (rows, tokens, hidden), then padding.

    Args:
        tokens: of all samples, (samples, tokens, hidden).
        rows: the row of each, ascending, (samples,).
        number: of each among its row's, from 0, (samples,).
    """
    most, each = int(number.max()) + 1, tokens.values.shape[1]
    if most == 1:  # a row for each
        return tokens
    row = torch.unique_consecutive(rows, return_inverse=True)[1]
    shape = (int(row.max()) + 1, most, each)
    values = tokens.values.new_zeros(*shape, tokens.values.shape[2])
    mask = tokens.mask.new_zeros(shape)
    values = values.index_put((row, number), tokens.values)
    mask = mask.index_put((row, number), tokens.mask)
    return Tokens(values.flatten(1, 2), mask.flatten(1, 2))


def window_frames(frames: Frames, width: int) -> tuple[Frames, Tensor, Tensor]:
    """The windows of samples, each by itself; those without a real frame but the first left out.

    Args:
        frames: of samples, (samples, windows * width, dim); the last window may be shorter.
        width: frames of a whole window.

    Returns:
        The windows' frames, (windows, width, dim); of each its sample, ascending, and its number
        among that sample's, from 0.
    """
    count = -(-frames.mask.shape[1] // width)
    room = (0, count * width - frames.mask.shape[1])
    shape = (len(frames.mask), count, width)
    values = nn.functional.pad(frames.values, (0, 0, *room)).reshape(*shape, -1)
    mask = nn.functional.pad(frames.mask, room).reshape(shape)
    real = mask.any(dim=2)  # (samples, windows)
    real[:, 0] = True
    rows, number = real.nonzero(as_tuple=True)
    return Frames(values[rows, number], mask[rows, number]), rows, number
