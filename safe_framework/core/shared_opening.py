"""What many rows begin with, read by the base once; each row is read behind it.

Prompts of one chat template begin alike: with its system message, often longer than a question.
Behind a cache a base gives the same but for rounding.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import on_device
from safe_framework.core.past_rows import Past, past_of_rows
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow, Rows

_WORTH = 4  # tokens: reading fewer again costs nothing
_FEW = 16  # rows that are read together


class SharedOpening:
    """Makes the inputs of calls on rows, behind what all of them begin with.

    Args:
        model: whose base reads them.
        prompts: makes batches of rows.
        pad: id of padding.
        ids: what the rows begin with; none to read each whole.
    """

    def __init__(
        self, model: SafeModel, prompts: PromptEncoder, pad: int, ids: Sequence[int] = ()
    ) -> None:
        self.model, self.prompts, self.pad = model, prompts, pad
        self.ids = tuple(ids)

    def inputs(self, rows: Rows) -> dict[str, Any]:
        """Of a call on rows that lack what they begin with, padded on the right, on the device.

        Args:
            rows: without the opening.
        """
        batch = on_device(self.prompts.collate(rows, self.pad), self.model.device)
        if not self.ids:
            return batch
        ids, mask = batch["input_ids"], batch["attention_mask"]
        count, past = len(self.ids), copy.deepcopy(self.past)
        past.batch_repeat_interleave(len(rows))
        positions = count + torch.arange(ids.shape[1], device=ids.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.cat([mask.new_ones(len(rows), count), mask], dim=1),
            "position_ids": positions.expand(len(rows), -1),
            "past_key_values": past,
        }

    @cached_property
    def past(self) -> Any:
        """The base's cache behind it, of one row."""
        ids = torch.tensor([self.ids], device=self.model.device)
        with torch.no_grad(), self.model.off():
            out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        return out.past_key_values

    @cached_property
    def kept(self) -> Past:
        """What it leaves in the cache; nothing where rows begin with nothing."""
        if not self.ids:
            return {}
        return {name: values[0] for name, values in past_of_rows(self.past).items()}


def common_opening(model: SafeModel, rows: Rows) -> tuple[int, ...]:
    """The ids that rows begin with, each of which goes on; none if that is not worth while.

    Args:
        model: whose base would go on behind them; none where it could not.
        rows: without pictures.
    """
    if len(rows) < 2 or not goes_on(model.base):
        return ()
    ordered = sorted(row.ids for row in rows)
    shortest = min(map(len, ordered))
    found = ordered[0][: min(_alike(ordered[0], ordered[-1]), shortest - 1)]
    return found if len(found) >= _WORTH else ()


def openings(model: SafeModel, rows: Rows) -> dict[tuple[int, ...], list[PromptRow]]:
    """Rows by the longest beginning that each shares with at least as many as make a group.

    Args:
        model: whose base would go on behind a beginning; there is none where it could not.
        rows: in any order. Those with pictures, and those that share none worth while, are under
            an empty beginning.
    """
    plain = sorted({row for row in rows if not row.images}, key=lambda row: row.ids)
    shared = [0] * len(plain)
    few = range(len(plain) - _FEW + 1) if goes_on(model.base) else ()
    for first in few:
        own = range(first, first + _FEW)
        count = _alike(plain[first].ids, plain[own[-1]].ids)
        for number in own:
            shared[number] = max(shared[number], min(count, len(plain[number]) - 1))
    found: dict[tuple[int, ...], list[PromptRow]] = {}
    for row, count in zip(plain, shared, strict=True):
        found.setdefault(row.ids[:count] if count >= _WORTH else (), []).append(row)
    if pictured := [row for row in dict.fromkeys(rows) if row.images]:
        found.setdefault((), []).extend(pictured)
    return found


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two rows have in common before they differ."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def behind(row: PromptRow, opening: Sequence[int]) -> PromptRow:
    """The row without what it begins with."""
    return PromptRow(row.ids[len(opening) :])


def goes_on(base: Any) -> bool:
    """Whether a base takes the positions of a text that goes on behind a cache."""
    takes = inspect.signature(base.forward).parameters
    return not decodes_separately(base) and "position_ids" in takes
