"""What prompts leave in a base's cache, read once for every answer to them.

Where every modality acts on answers (law L8), the keys and values of a prompt before its last
position are the base's own, whatever sample comes with it and however far a gate is open. So one
reading of a prompt serves its answers at every gate, beside every sample and beside none; each of
them begins at the last position. What many prompts begin with is read once, too.

An answer behind what was kept is in exact arithmetic the one that a call on the whole prompt gives:
a key or a value is then a sum of the same terms, in a batch of another shape. Greedy tokens can
differ by no more than rounding, as between any two batches that a prompt may be in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from safe_framework.core.base_errors import base_errors
from safe_framework.core.call import is_prompt
from safe_framework.core.modality import split_by_modality
from safe_framework.core.model import SafeModel
from safe_framework.core.past_rows import Past, cache_of
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow
from safe_framework.core.shared_opening import (
    SharedOpening,
    behind,
    goes_on,
    openings,
    reads_trees,
)
from safe_framework.errors import InjectionError, UnsupportedBaseError
from safe_framework.interfaces.types import FROM
from safe_framework.utils.tensors import near
from safe_framework.utils.torch_private import compiled_call

MOST_BYTES = 512 * 2**20
"""Of keys and values that are kept: past them, those that were asked for longest ago are gone."""


@attrs.frozen(eq=False)
class _Kept:
    """What a prompt left: behind an opening, whose own part it shares with others."""

    opening: tuple[int, ...]
    own: Past


class PromptPasts:
    """Keeps what prompts left, and lets calls begin behind it.

    Args:
        model: in evaluation mode, whose weights do not change meanwhile.
        most_bytes: of keys and values that are kept.
    """

    def __init__(self, model: SafeModel, most_bytes: int = MOST_BYTES) -> None:
        self.model, self.most_bytes, self.bytes = model, most_bytes, 0
        self._prompts, self._pad = PromptEncoder.of(model), model.processor.padding
        self._kept = dict[tuple[int, ...], _Kept]()  # the one asked for last comes last
        self._opened = dict[tuple[int, ...], SharedOpening]()
        self._goes_on: bool | None = None  # not tried yet
        self._in_trees: bool | None = None  # nor this

    def behind(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch for a call that begins at the last positions of its prompts.

        Args:
            batch: what the processor made, for ``generate`` or ``prompt_states``.

        Returns:
            The batch itself where its prompts are to be read with it: they depend on samples, or
            the base gives something else behind a cache.
        """
        if self._goes_on is False or not self._shares(batch):
            return batch
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        heads = [tuple(row[real][:-1].tolist()) for row, real in zip(ids, mask, strict=True)]
        if not all(heads):
            return batch  # a prompt of one token leaves nothing
        try:
            self._read([head for head in dict.fromkeys(heads) if head not in self._kept])
            found = {**batch, "past_key_values": self._cache(heads, ids.shape[1] - 1)}
            if self._goes_on is None:
                self._goes_on = self._agrees(batch, heads)
        except (UnsupportedBaseError, InjectionError):  # its prompts are read whole
            self._goes_on = False
        self._drop()
        return found if self._goes_on else batch

    def _shares(self, batch: Mapping[str, Any]) -> bool:
        """Whether nothing but its ids decides what a prompt of the batch leaves."""
        model = self.model
        own, given = split_by_modality((), batch, model.modalities)
        return (
            own.keys() == {"input_ids", "attention_mask"}
            and is_prompt(model.base, own)
            and goes_on(model.base)
            and all(model.attends[name] == "answer" for name in given)
            and not any(FROM in inputs for inputs in given.values())
            and not any(model.modality(name).markers for name in model.modalities)
            and not (model.split_rows or model.base_change or model.attention_probe.enabled)
            and compiled_call(model.base) is None
        )

    def _read(self, heads: Sequence[tuple[int, ...]]) -> None:
        """Read prompts without their last positions, behind what many of them begin with."""
        rows = [PromptRow(head) for head in heads]
        for opening, own in openings(self.model, rows).items():
            shared = self._opening(opening)
            found = shared.left_by([behind(row, opening) for row in own])
            for row, past in zip(own, found, strict=True):
                past = {name: kept.clone() for name, kept in past.items()}  # of this row alone
                self._kept[row.ids] = _Kept(opening, past)
                self.bytes += _size(past)

    def _opening(self, ids: tuple[int, ...]) -> SharedOpening:
        if ids not in self._opened:
            if self._in_trees is None:
                self._in_trees = reads_trees(self.model, self._prompts, self._pad)
            self._opened[ids] = SharedOpening(
                self.model, self._prompts, self._pad, ids, self._in_trees
            )
            self.bytes += _size(self._opened[ids].kept)
        return self._opened[ids]

    def _cache(self, heads: Sequence[tuple[int, ...]], columns: int) -> Any:
        rows = []
        for head in heads:
            kept = self._kept[head] = self._kept.pop(head)
            opened = self._opened[kept.opening].kept
            rows.append([opened, kept.own] if opened else [kept.own])
        return cache_of(rows, self.model.device, columns)

    def _agrees(self, batch: Mapping[str, Any], heads: Sequence[tuple[int, ...]]) -> bool:
        """Whether the base gives behind what was kept what it gives of whole prompts."""
        two = {name: batch[name][:2] for name in ("input_ids", "attention_mask")}
        last = self.model.stack.count - 1
        past = self._cache(heads[:2], two["input_ids"].shape[1] - 1)
        with base_errors():
            whole = self.model.prompt_states(two, [last])[last].last
            cut = self.model.prompt_states({**two, "past_key_values": past}, [last])[last].last
        return near(cut, whole)

    def _drop(self) -> None:
        """Forget what was asked for longest ago, as far as there is too much."""
        if self.bytes <= self.most_bytes:
            return
        while self._kept and self.bytes > self.most_bytes:
            self.bytes -= _size(self._kept.pop(next(iter(self._kept))).own)
        used = {kept.opening for kept in self._kept.values()}
        for ids in [ids for ids in self._opened if ids not in used]:
            self.bytes -= _size(self._opened.pop(ids).kept)


def _size(past: Past) -> int:
    return sum(values.nbytes for values in past.values())
