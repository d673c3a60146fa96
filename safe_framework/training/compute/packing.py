"""Texts side by side: those of a call stand in fewer rows, of which hardly anything is padding.

Each text keeps its own positions and sees nothing but itself (sequence packing without
cross-contamination, Krell et al. 2021, arXiv:2107.02027), so a base that takes positions and a mask
of its own computes of it what it does of a row. Only fusion adapters, whose samples belong to
rows, are shown the rows of the call, at the layers at which they enter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.layer_discovery import PLAIN
from safe_framework.core.layer_hooks import LayerCall, hidden_of, with_hidden
from safe_framework.core.model import SafeModel

WORTH = 0.95
"""Share of a call's positions: to leave out fewer than the rest takes longer than it saves."""
_WIDEST = 3  # times the longest text
# What of a configuration bounds how far a layer looks back: a mask of our own would widen it.
_WINDOWS = ("sliding_window", "attention_chunk_size")
_ATTENTION = 3000  # positions that attend to each other cost as much as all else does for one


@attrs.frozen(eq=False)
class Packing:
    """Where the texts of a call stand.

    Attributes:
        shape: of the call, (batch, length).
        source: the position of the call, row after row, that stands at each packed one; 0 where
            none does, (rows, width).
        text: the row of the call that it is of; -1 where there is none, (rows, width).
        target: where each position of the call stands, row after row; 0 if nowhere,
            (batch, length).
    """

    shape: torch.Size
    source: Tensor
    text: Tensor
    target: Tensor

    @property
    def positions(self) -> Tensor:
        """Of each word in its own text, (rows, width)."""
        return self.source % self.shape[1]

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to scores: nothing where a text sees itself, (rows, 1, width, width)."""
        same = self.text.unsqueeze(2) == self.text.unsqueeze(1)
        seen = same.tril().unsqueeze(1)
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    def packed(self, values: Tensor) -> Tensor:
        """(batch, length, ...) to (rows, width, ...)."""
        return _picked(values, self.source)

    def unpacked(self, values: Tensor) -> Tensor:
        """(rows, width, ...) to (batch, length, ...); anything where nothing is packed."""
        return _picked(values, self.target)

    def places(self, places: Tensor) -> Tensor:
        """Where words are that are read, (rows, width), of (batch, length)."""
        return self.packed(places) & (self.text >= 0)

    def in_order(self, seen: Tensor, places: Tensor) -> Tensor:
        """What was read at packed ``places``, in the call's order, (words, ...)."""
        return seen[self.source[places].argsort().to(seen.device)]

    def rows(self, states: Sequence[Tensor]) -> list[Tensor]:
        """States of the call's rows, each (length of the text or more, ...), as packed rows."""
        whole = nn.utils.rnn.pad_sequence(list(states), batch_first=True)
        missing = self.shape[1] - whole.shape[1]
        return list(self.packed(nn.functional.pad(whole, (0, 0, 0, missing))))

    @contextmanager
    def entered(self, model: SafeModel) -> Iterator[None]:
        """Within the block, texts with which the base is called are packed."""
        fused = {layer for name in model.modalities for layer in model.modality(name).fusion.layers}
        layers, base = model.stack.of(model.base), model.base
        with ExitStack() as stack:
            enter = base.register_forward_pre_hook(self._enter, with_kwargs=True)
            stack.callback(enter.remove)
            for layer in map(layers.__getitem__, sorted(fused)):
                for hook, first in ((self._unpack, True), (self._pack, False)):
                    handle = layer.register_forward_pre_hook(hook, prepend=first, with_kwargs=True)
                    stack.callback(handle.remove)
            yield

    def _enter(
        self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = kwargs["input_ids"]
        dtype = next(base.parameters()).dtype
        own = {
            "input_ids": self.packed(ids),
            "position_ids": self.positions.to(ids.device),
            "attention_mask": self.mask(dtype).to(ids.device),
        }
        return args, {**kwargs, **own}

    def _unpack(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerCall:
        return with_hidden(args, kwargs, self.unpacked(hidden_of(args, kwargs)))

    def _pack(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerCall:
        return with_hidden(args, kwargs, self.packed(hidden_of(args, kwargs)))


def can_pack(model: SafeModel) -> bool:
    """Whether nothing is known of a model that would keep its texts from being packed."""
    modalities = [model.modality(name) for name in model.modalities]
    configs: list[Any] = [model.base.config, model.base.config.get_text_config()]  # type: ignore[union-attr, operator]
    windows = (getattr(config, name, None) for config in configs for name in _WINDOWS)
    return (
        not model.split_rows
        and model.stack.passes == 1
        and model.stack.layout is PLAIN
        and model.base._compiled_call_impl is None
        and not any(modality.markers for modality in modalities)
        and not any(windows)
    )


def packing_of(needed: Tensor) -> Packing | None:
    """How to pack a call; None where that would leave out hardly anything.

    Args:
        needed: True at the positions that are computed, from the first of a row on,
            (batch, length).
    """
    lengths = needed.sum(1).tolist()
    longest = max(lengths, default=0)
    if longest == 0:
        return None
    rows, width = _best(lengths)
    if len(rows) * width > WORTH * needed.numel():
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


def _best(lengths: Sequence[int]) -> tuple[list[list[int]], int]:
    """Texts by rows, and the rows' width, of those that cost least."""
    longest, total = max(lengths), sum(lengths)
    widths = range(longest, _WIDEST * longest + 1)
    fewest = sorted((_cost(-(-total // width), width), width) for width in widths)
    best, found = float("inf"), (list[list[int]](), longest)
    for least, width in fewest:
        if least >= best:  # even without a gap
            break
        rows = _filled(lengths, width)
        if (cost := _cost(len(rows), width)) < best:
            best, found = cost, (rows, width)
    return found


def _cost(rows: int, width: int) -> float:
    return rows * width * (1 + width / _ATTENTION)


def _filled(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Texts by rows of a width: each time the longest one, and those that fill the rest best."""
    left = sorted((one for one in range(len(lengths)) if lengths[one]), key=lambda i: -lengths[i])
    rows = list[list[int]]()
    while left:
        first, *left = left
        rows.append(
            [first, *_fitting([lengths[one] for one in left], left, width - lengths[first])]
        )
        left = [one for one in left if one not in rows[-1]]
    return rows


def _fitting(lengths: Sequence[int], texts: Sequence[int], room: int) -> list[int]:
    """Some of the texts, as long together as can be without exceeding the room."""
    sums, within = [1], (1 << room + 1) - 1  # bit n: some of the texts so far are n long together
    for length in lengths:
        sums.append((sums[-1] | sums[-1] << length) & within)
    found, reached = list[int](), sums[-1].bit_length() - 1
    for number in range(len(texts) - 1, -1, -1):
        if not sums[number] >> reached & 1:  # not without this one
            found.append(texts[number])
            reached -= lengths[number]
    return found


def _picked(values: Tensor, at: Tensor) -> Tensor:
    flat = values.flatten(0, 1)
    return flat.index_select(0, at.flatten().to(flat.device)).view(*at.shape, *flat.shape[1:])
