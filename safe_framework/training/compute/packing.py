"""Sequence packing: the texts of a call in fewer rows, with hardly any padding.

Each text keeps its own position ids and attends to nothing but itself (packing without
cross-contamination, Krell et al. 2021, arXiv:2107.02027), so a base that takes position ids and a
mask computes for it what it computes for a row of its own. Only fusion adapters, whose samples
belong to rows, are given the unpacked rows of the call, at the layers that they change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.layer_hooks import (
    LayerCall,
    get_hidden_states,
    registered,
    set_hidden_states,
)
from safe_framework.core.model import SafeModel
from safe_framework.core.padding import pad_to_length

WORTHWHILE_SHARE = 0.95
"""Share of a call's positions: computing more than that instead of all saves no time."""
_MAX_WIDTH_FACTOR = 3  # times the longest text
_ATTENTION_COST_LENGTH = 3000  # row length at which attention costs as much as the rest of a layer


@attrs.frozen(eq=False)
class Packing:
    """Where the tokens of a call are in its packed rows.

    Attributes:
        shape: of the call, (batch, length).
        source: the flat index in the call of each packed position; 0 where none is packed,
            (rows, width).
        text: the row of the call that it comes from; -1 where none does, (rows, width).
        target: the flat index in the packed rows of each position of the call; 0 where it is not
            packed, (batch, length).
    """

    shape: torch.Size
    source: Tensor
    text: Tensor
    target: Tensor

    @property
    def position_ids(self) -> Tensor:
        """Of each token in its own text, (rows, width)."""
        return self.source % self.shape[1]

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Added to attention scores: 0 where a text attends to itself, (rows, 1, width, width)."""
        same = self.text.unsqueeze(2) == self.text.unsqueeze(1)
        seen = same.tril().unsqueeze(1)
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    def pack(self, values: Tensor) -> Tensor:
        """(batch, length, ...) to (rows, width, ...)."""
        return _gather(values, self.source)

    def unpack(self, values: Tensor) -> Tensor:
        """(rows, width, ...) to (batch, length, ...); arbitrary where nothing is packed."""
        return _gather(values, self.target)

    def pack_mask(self, positions: Tensor) -> Tensor:
        """A mask of the call's positions, (batch, length), as one of packed rows, (rows, width)."""
        return self.pack(positions) & (self.text >= 0)

    def unpack_selected(self, values: Tensor, positions: Tensor) -> Tensor:
        """What was read at packed ``positions``, in the call's order, (tokens, ...)."""
        return values[self.source[positions].argsort().to(values.device)]

    def pack_rows(self, states: Sequence[Tensor]) -> list[Tensor]:
        """States of the call's rows, each (length of the text or more, ...), as packed rows."""
        whole = nn.utils.rnn.pad_sequence(list(states), batch_first=True)
        return list(self.pack(pad_to_length(whole, self.shape[1])))

    @contextmanager
    def applied_to(self, model: SafeModel) -> Iterator[None]:
        """Within the block, the texts of a call are packed before they enter the base."""
        fused = {layer for name in model.modalities for layer in model.modality(name).fusion.layers}
        layers, base = model.stack.of(model.base), model.base
        handles = [base.register_forward_pre_hook(self._pack_inputs, with_kwargs=True)]
        for layer in map(layers.__getitem__, sorted(fused)):
            for hook, first in ((self._unpack, True), (self._pack, False)):
                handle = layer.register_forward_pre_hook(hook, prepend=first, with_kwargs=True)
                handles.append(handle)
        with registered(*handles):
            yield

    def _pack_inputs(
        self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = kwargs["input_ids"]
        dtype = next(base.parameters()).dtype
        packed = {
            "input_ids": self.pack(ids),
            "position_ids": self.position_ids.to(ids.device),
            "attention_mask": self.mask(dtype).to(ids.device),
        }
        return args, {**kwargs, **packed}

    def _unpack(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerCall:
        return set_hidden_states(args, kwargs, self.unpack(get_hidden_states(args, kwargs)))

    def _pack(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerCall:
        return set_hidden_states(args, kwargs, self.pack(get_hidden_states(args, kwargs)))


def plan_packing(needed: Tensor) -> Packing | None:
    """How to pack a call; None where that would save hardly anything.

    Args:
        needed: True at the positions to compute, which begin with the first of a row,
            (batch, length).
    """
    lengths = needed.sum(1).tolist()
    longest = max(lengths, default=0)
    if longest == 0:
        return None
    rows, width = _cheapest_rows(lengths)
    if len(rows) * width > WORTHWHILE_SHARE * needed.numel():
        return None
    source = torch.zeros(len(rows), width, dtype=torch.long)
    text, target = torch.full_like(source, -1), torch.zeros(needed.shape, dtype=torch.long)
    for row, texts in enumerate(rows):
        start = 0
        for number in texts:
            count = lengths[number]
            at = slice(start, start + count)
            source[row, at] = number * needed.shape[1] + torch.arange(count)
            text[row, at] = number
            target[number, :count] = row * width + start + torch.arange(count)
            start += count
    device = needed.device
    return Packing(needed.shape, source.to(device), text.to(device), target.to(device))


def _cheapest_rows(lengths: Sequence[int]) -> tuple[list[list[int]], int]:
    """The cheapest packing: texts by row, and the rows' width."""
    longest, total = max(lengths), sum(lengths)
    widths = range(longest, _MAX_WIDTH_FACTOR * longest + 1)
    fewest = sorted((_cost(-(-total // width), width), width) for width in widths)
    best, found = float("inf"), (list[list[int]](), longest)
    for least, width in fewest:
        if least >= best:  # even without any padding
            break
        rows = _fill_rows(lengths, width)
        if (cost := _cost(len(rows), width)) < best:
            best, found = cost, (rows, width)
    return found


def _cost(rows: int, width: int) -> float:
    return rows * width * (1 + width / _ATTENTION_COST_LENGTH)


def _fill_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Texts by rows of a width: always the longest one left, and those that best fill the rest."""
    left = sorted((one for one in range(len(lengths)) if lengths[one]), key=lambda i: -lengths[i])
    rows = list[list[int]]()
    while left:
        first, *left = left
        others = [lengths[one] for one in left]
        rows.append([first, *_largest_fitting_subset(others, left, width - lengths[first])])
        left = [one for one in left if one not in rows[-1]]
    return rows


def _largest_fitting_subset(lengths: Sequence[int], texts: Sequence[int], limit: int) -> list[int]:
    """The texts that are longest together without exceeding a length (subset sum)."""
    sums, within = [1], (1 << limit + 1) - 1  # bit n: some of the texts so far are n long together
    for length in lengths:
        sums.append((sums[-1] | sums[-1] << length) & within)
    found, reached = list[int](), sums[-1].bit_length() - 1
    for number in range(len(texts) - 1, -1, -1):
        if not sums[number] >> reached & 1:  # not without this one
            found.append(texts[number])
            reached -= lengths[number]
    return found


def _gather(values: Tensor, at: Tensor) -> Tensor:
    flat = values.flatten(0, 1)
    return flat.index_select(0, at.flatten().to(flat.device)).view(*at.shape, *flat.shape[1:])
