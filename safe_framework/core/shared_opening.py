"""What many rows begin with, read by the base once; each row is read behind it.

Prompts of one chat template begin alike: with its system message, often longer than a question.
Behind a cache a base gives the same but for rounding.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.base_errors import base_errors
from safe_framework.core.decoding import has_plain_cache
from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import layer_outputs, on_device, shown_only
from safe_framework.core.past_rows import Past, past_of_rows
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow, Rows
from safe_framework.core.text_trees import TextTrees, alike, can_mask_pairs
from safe_framework.errors import InjectionError, UnsupportedBaseError

_WORTH = 4  # tokens: reading fewer again costs nothing
_FEW = 16  # rows that are read together


@attrs.frozen(eq=False)
class RowsCall:
    """A call of a base on several rows.

    Attributes:
        inputs: of the base.
        of_rows: parts what was computed, (batch, length, ...), into each row's, (length, ...).
    """

    inputs: dict[str, Any]
    of_rows: Callable[[Tensor], list[Tensor]]


class SharedOpening:
    """Makes the inputs of calls on rows, behind what all of them begin with.

    Args:
        model: whose base reads them.
        prompts: makes batches of rows.
        pad: id of padding.
        ids: what the rows begin with; none to read each whole.
        in_trees: whether what some of the rows begin with is read once, too.
    """

    def __init__(
        self,
        model: SafeModel,
        prompts: PromptEncoder,
        pad: int,
        ids: Sequence[int] = (),
        in_trees: bool = False,
    ) -> None:
        self.model, self.prompts, self.pad = model, prompts, pad
        self.ids, self.in_trees = tuple(ids), in_trees

    def call(self, rows: Rows) -> RowsCall:
        """A call on rows that lack what they begin with.

        Args:
            rows: without the opening; in trees, without pictures.
        """
        if not self.in_trees:
            lengths = [len(row) for row in rows]
            return RowsCall(self.inputs(rows), lambda values: unpadded(values, lengths))
        trees = TextTrees.of([row.ids for row in rows])
        dtype = next(self.model.base.parameters()).dtype
        inputs = trees.inputs(dtype, self.model.device, len(self.ids))
        if self.ids:
            inputs["past_key_values"] = self._past_of(len(trees.ids))
        return RowsCall(inputs, trees.of_texts)

    def left_by(self, rows: Rows) -> list[Past]:
        """What each of the rows leaves in the base's cache behind the opening.

        Args:
            rows: as ``call`` takes them.

        Raises:
            UnsupportedBaseError: the base keeps something else.
        """
        return left_by_call(self.model, self.call(rows))

    def inputs(self, rows: Rows) -> dict[str, Any]:
        """Of a call on rows that lack what they begin with, padded on the right, on the device.

        Args:
            rows: without the opening.
        """
        batch = on_device(self.prompts.collate(rows, self.pad), self.model.device)
        if not self.ids:
            return batch
        ids, mask = batch["input_ids"], batch["attention_mask"]
        count = len(self.ids)
        positions = count + torch.arange(ids.shape[1], device=ids.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.cat([mask.new_ones(len(rows), count), mask], dim=1),
            "position_ids": positions.expand(len(rows), -1),
            "past_key_values": self._past_of(len(rows)),
        }

    def _past_of(self, rows: int) -> Any:
        """The base's cache behind it, of so many rows."""
        with base_errors():
            past = copy.deepcopy(self.past)
            past.batch_repeat_interleave(rows)
        return past

    @cached_property
    def past(self) -> Any:
        """The base's cache behind it, of one row."""
        ids = torch.tensor([self.ids], device=self.model.device)
        with torch.no_grad(), self.model.off(), base_errors():
            out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        return out.past_key_values

    @cached_property
    def kept(self) -> Past:
        """What it leaves in the cache; nothing where rows begin with nothing."""
        if not self.ids:
            return {}
        return {name: values[0] for name, values in past_of_rows(self.past).items()}


@torch.no_grad()
def left_by_call(model: SafeModel, call: RowsCall) -> list[Past]:
    """What each row of a call leaves in the base's cache behind what lies there.

    Raises:
        UnsupportedBaseError: the base keeps something else.
    """
    begin = _begin(call)
    unread = torch.zeros_like(call.inputs["input_ids"], dtype=torch.bool)
    with model.off(), shown_only(model.base, unread), base_errors():
        cache = model(**call.inputs, use_cache=True).past_key_values
    return _left_in(cache, call, begin)


@torch.no_grad()
def left_below(model: SafeModel, call: RowsCall, layer: int) -> tuple[list[Past], list[Tensor]]:
    """What each row of a call leaves up to a layer, and the output of that, (length, hidden).

    The layers above do not run.

    Raises:
        UnsupportedBaseError: the base keeps something else.
    """
    from transformers import DynamicCache

    config: Any = model.base.config
    begin = _begin(call)
    inputs = {"past_key_values": DynamicCache(config=config), **call.inputs, "use_cache": True}
    with base_errors():
        found = layer_outputs(model, inputs, [layer])
    if layer not in found:
        raise UnsupportedBaseError(f"layer {layer} never ran")
    cache: Any = inputs["past_key_values"]
    del cache.layers[layer + 1 :]
    return _left_in(cache, call, begin), call.of_rows(found[layer])


def _begin(call: RowsCall) -> int:
    before = call.inputs.get("past_key_values")
    return 0 if before is None else int(before.get_seq_length())


def _left_in(cache: Any, call: RowsCall, begin: int) -> list[Past]:
    """What a cache holds of each row of a call, from a column on."""
    found, columns = past_of_rows(cache), begin + call.inputs["input_ids"].shape[1]
    if not has_plain_cache(cache) or any(one.shape[1] != columns for one in found.values()):
        raise UnsupportedBaseError(f"a `{type(cache).__name__}` does not hold each position")
    parts = {name: call.of_rows(kept[:, begin:]) for name, kept in found.items()}
    count = len(next(iter(parts.values())))
    return [{name: own[n] for name, own in parts.items()} for n in range(count)]


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
    found = ordered[0][: min(alike(ordered[0], ordered[-1]), shortest - 1)]
    return found if len(found) >= _WORTH else ()


def openings(
    model: SafeModel, rows: Rows, few: int = _FEW
) -> dict[tuple[int, ...], list[PromptRow]]:
    """Rows by the longest beginning that each shares with at least as many as make a group.

    Args:
        model: whose base would go on behind a beginning; there is none where it could not.
        rows: in any order. Those with pictures, and those that share none worth while, are under
            an empty beginning.
        few: rows that make a group.
    """
    plain = sorted({row for row in rows if not row.images}, key=lambda row: row.ids)
    shared = [0] * len(plain)
    for first in range(len(plain) - few + 1) if goes_on(model.base) else ():
        own = range(first, first + few)
        count = alike(plain[first].ids, plain[own[-1]].ids)
        for number in own:
            shared[number] = max(shared[number], min(count, len(plain[number]) - 1))
    found: dict[tuple[int, ...], list[PromptRow]] = {}
    for row, count in zip(plain, shared, strict=True):
        found.setdefault(row.ids[:count] if count >= _WORTH else (), []).append(row)
    if pictured := [row for row in dict.fromkeys(rows) if row.images]:
        found.setdefault((), []).extend(pictured)
    return found


@torch.no_grad()
def reads_trees(model: SafeModel, prompts: PromptEncoder, pad: int) -> bool:
    """Whether a base gives texts in a tree what it gives each alone, tried on two made-up ones.

    Args:
        model: whose base it is; no other change of the base is at work.
        prompts: makes batches of rows.
        pad: id of padding.
    """
    if model.base_change is not None or not can_mask_pairs(model) or not goes_on(model.base):
        return False
    table: Any = model.base.get_input_embeddings()  # type: ignore[operator]  # a method
    opening, *texts = (
        tuple(number % len(table.weight) for number in ids)
        for ids in ((7, 5), (1, 2, 3, 4), (1, 2, 6))
    )
    shared = SharedOpening(model, prompts, pad, opening, in_trees=True)
    try:
        call = shared.call([PromptRow(text) for text in texts])
        with model.off(), base_errors():
            found = call.of_rows(model(**call.inputs).logits)
            ids = [torch.tensor([opening + text], device=model.device) for text in texts]
            whole = [model(input_ids=one, attention_mask=torch.ones_like(one)) for one in ids]
    except (UnsupportedBaseError, InjectionError):  # it takes no positions, or no such mask
        return False
    pairs = zip(found, whole, strict=True)
    return all(_same_tokens_seen(own, out.logits[0, len(opening) :]) for own, out in pairs)


def _same_tokens_seen(given: Tensor, wanted: Tensor) -> bool:
    """Whether two computations saw the same tokens at the same positions.

    On made-up words deep layers can blow rounding up, which another mask exceeds by far. Whoever
    reads rows tries some of them more strictly.
    """
    allowed = min(torch.finfo(wanted.dtype).eps ** 0.5, 0.05)
    return bool((given - wanted).float().norm() <= allowed * wanted.float().norm())


def unpadded(values: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """What was computed of each row, (length, ...), of rows that were padded on the right."""
    return [row[:length] for row, length in zip(values, lengths, strict=True)]


def behind(row: PromptRow, opening: Sequence[int]) -> PromptRow:
    """The row without what it begins with."""
    return PromptRow(row.ids[len(opening) :])


def goes_on(base: Any) -> bool:
    """Whether a base takes the positions of a text that goes on behind a cache."""
    takes = inspect.signature(base.forward).parameters
    return not decodes_separately(base) and "position_ids" in takes
