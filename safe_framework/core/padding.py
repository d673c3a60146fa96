"""Padding of batches: rows put together, and columns moved as spans come in or go out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.interfaces.types import IGNORED

NEW_PADDING = -1
_ENDINGS = ("mask", "ids", "labels")
_OTHERS = ("decoder_", "pixel_", "qformer_", "image_", "aspect_ratio_")


@attrs.frozen
class PaddedRows:
    """Where the rows of a batch have text between their padding.

    Attributes:
        left: whether they are padded on the left.
        bounds: the columns from a row's first to its last real one.
        length: how many columns there are.
    """

    left: bool
    bounds: Sequence[range]
    length: int

    @classmethod
    def of(cls, mask: Tensor) -> PaddedRows:
        """The rows of a batch with this attention mask, (batch, length)."""
        rows = mask.bool().tolist()
        left = not all(row[0] for row in rows) or all(row[-1] for row in rows)
        return cls(left, [_bounds(row, left) for row in rows], mask.shape[1])

    def width(self, contents: Sequence[Sequence[int]]) -> int:
        """Columns for other contents: as few as fit, unless there were more than that before."""
        longest = max(map(len, contents))
        tight = any(len(bounds) == self.length for bounds in self.bounds)
        return longest if tight else max(longest, self.length)

    def index(self, contents: Sequence[Sequence[int]], width: int) -> Tensor:
        """Which old column each new one holds, (batch, width).

        Args:
            contents: the columns of each row, without its padding; a row's own padding follows
                as far as it is needed, then comes ``NEW_PADDING``.
            width: of every row.
        """
        rows = zip(contents, self.bounds, strict=True)
        return torch.tensor([self._row(list(row), bounds, width) for row, bounds in rows])

    def _row(self, content: list[int], bounds: range, width: int) -> list[int]:
        missing = width - len(content)
        if self.left:
            own = list(range(bounds.start))[max(bounds.start - missing, 0) :]
            return [*[NEW_PADDING] * (missing - len(own)), *own, *content]
        own = list(range(bounds.stop, self.length))[:missing]
        return [*content, *own, *[NEW_PADDING] * (missing - len(own))]


def _bounds(row: list[bool], left: bool) -> range:
    if True not in row:
        return range(len(row), len(row)) if left else range(0)
    return range(row.index(True), len(row)) if left else range(len(row) - row[::-1].index(True))


def per_token_inputs(
    inputs: Mapping[str, Any], shape: torch.Size, *, separate_decoder: bool = False
) -> dict[str, Tensor]:
    """Those inputs of a call that have a value for each text position.

    Args:
        inputs: of the call.
        shape: of its text, (batch, length).
        separate_decoder: whether ``labels`` belong to a decoder's text instead.
    """
    return {
        name: value
        for name, value in inputs.items()
        if isinstance(value, Tensor)
        and value.shape[:2] == shape
        and is_per_token(name)
        and not (separate_decoder and name == "labels")
    }


def is_per_token(name: str) -> bool:
    """Whether an input is called like those that have a value for each text position."""
    return (name == "inputs" or name.endswith(_ENDINGS)) and not name.startswith(_OTHERS)


def gather_columns(inputs: Mapping[str, Tensor], index: Tensor, pad: int) -> dict[str, Tensor]:
    """Every tensor with its columns as ``index`` says; ``pad`` is the id of new padding."""
    fills = {"input_ids": pad, "inputs": pad, "labels": IGNORED}
    return {name: _taken(value, index, fills.get(name, 0)) for name, value in inputs.items()}


def _taken(values: Tensor, index: Tensor, fill: int) -> Tensor:
    index = index.to(values.device).reshape(*index.shape, *[1] * (values.ndim - 2))
    wanted = index.clamp_min(0).expand(*index.shape[:2], *values.shape[2:])
    return values.gather(1, wanted).masked_fill(index == NEW_PADDING, fill)


def append_columns(inputs: Mapping[str, Tensor], new: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Every tensor with new columns at its end: these ids, which the mask shows."""
    ids = inputs["input_ids"]
    width = max(map(len, new))
    added = pad_right(new, 0).to(ids.dtype)
    columns = {"input_ids": added, "attention_mask": torch.ones_like(added)}
    return {
        name: torch.cat([value, _column(columns, name, value, width)], dim=1)
        for name, value in inputs.items()
    }


def _column(columns: Mapping[str, Tensor], name: str, value: Tensor, width: int) -> Tensor:
    if name in columns:
        return columns[name].to(value)
    return value.new_zeros(value.shape[0], width, *value.shape[2:])


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of ids as one tensor (batch, length), filled up with ``value`` on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def pad_left(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of ids as one tensor (batch, length), filled up with ``value`` on the left."""
    width = max(map(len, rows))
    return torch.tensor([[*[value] * (width - len(row)), *row] for row in rows])


def attention_mask(rows: Sequence[Sequence[int]]) -> Tensor:
    """1 where ``pad_right`` of the same rows holds a real id, (batch, length)."""
    return pad_right([[1] * len(row) for row in rows], 0)


def concatenate_rows(tensors: Sequence[Tensor]) -> Tensor:
    """The rows of all tensors, padded with 0 on the right of their second axis if they have one."""
    if tensors[0].ndim == 1:
        return torch.cat(list(tensors))
    longest = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad_to_length(tensor, longest) for tensor in tensors])


def pad_to_length(values: Tensor, length: int) -> Tensor:
    """(batch, n, ...) padded with 0, or cut, on the right of the second axis to ``length``."""
    beyond = (0, 0) * (values.ndim - 2)
    return nn.functional.pad(values, (*beyond, 0, length - values.shape[1]))
