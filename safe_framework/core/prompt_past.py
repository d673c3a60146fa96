"""What prompts leave in a base's cache, read once for every answer to them.

Where every modality acts on answers (law L8), the keys and values of a prompt before its last
position are the base's own, whatever sample comes with it and however far a gate is open. So one
reading of a prompt serves its answers at every gate, beside every sample and beside none; each of
them begins at the last position. What many prompts begin with is read once, too; and what prompts
have up to the last place of their pictures, for whatever is asked about these.

An answer behind what was kept is in exact arithmetic the one that a call on the whole prompt gives:
a key or a value is then a sum of the same terms, in a batch of another shape. Greedy tokens can
differ by no more than rounding, as between any two batches that a prompt may be in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from safe_framework.core.base_errors import base_errors
from safe_framework.core.call import is_prompt
from safe_framework.core.modality import split_by_modality
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import on_device
from safe_framework.core.padding import pad_left
from safe_framework.core.past_rows import Past, cache_of
from safe_framework.core.picture_openings import (
    TEXT,
    PictureOpenings,
    of_like_length,
    opening_of,
)
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow, Rows
from safe_framework.core.shared_opening import (
    SharedOpening,
    behind,
    goes_on,
    left_by_call,
    openings,
    reads_trees,
)
from safe_framework.data.pictures import Picture
from safe_framework.errors import InjectionError, UnsupportedBaseError
from safe_framework.interfaces.types import FROM
from safe_framework.utils.tensors import near
from safe_framework.utils.torch_private import compiled_call

MOST_BYTES = 2**30
"""Of keys and values kept, but for one batch: what was asked for longest ago goes first."""

_TOKENS = 2048  # of prompts with pictures that are read together


@attrs.frozen(eq=False)
class _Kept:
    """What a prompt left: behind an opening, whose own part it shares with others."""

    opening: PromptRow
    own: Past


class PromptPasts:
    """Keeps what prompts left, and lets calls begin behind it.

    Args:
        model: in evaluation mode, whose weights do not change meanwhile.
        most_bytes: of keys and values that are kept.
    """

    def __init__(self, model: SafeModel, most_bytes: int = MOST_BYTES) -> None:
        self.model, self.most_bytes, self.bytes = model, most_bytes, 0
        self.prompts, self._pad = PromptEncoder.of(model), model.processor.padding
        self._pictures = PictureOpenings(model, self.prompts, self._pad)
        self._kept = dict[PromptRow, _Kept]()  # the one asked for last comes last
        self._opened = dict[PromptRow, Past]()
        self._shared = dict[PromptRow, SharedOpening]()  # of those without pictures
        self._rows = dict[Any, PromptRow]()
        self._goes_on = dict[bool, bool]()  # with pictures and without, once it was tried
        self._in_trees: bool | None = None  # not tried yet

    def behind(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch for a call that begins at the last positions of its prompts.

        Args:
            batch: what the processor made, for ``generate`` or ``prompt_states``.

        Returns:
            The batch itself where its prompts are to be read with it: they depend on samples or
            have pictures, or the base gives something else behind a cache.
        """
        if not self._shares(batch):
            return batch
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        rows = [PromptRow(row[real].tolist()) for row, real in zip(ids, mask, strict=True)]
        past = self._past(rows, ids.shape[1] - 1)
        return batch if past is None else {**batch, "past_key_values": past}

    def row(self, text: str, images: Sequence[Picture], present: Mapping[str, int]) -> PromptRow:
        """The row of a prompt with pictures, of which the base's processor makes it once.

        Args:
            text: of the prompt.
            images: its pictures; at least one.
            present: how many samples it has of each modality.
        """
        asked = text, tuple(images), tuple(sorted(present.items()))
        if asked not in self._rows:
            self._rows[asked] = self.prompts.prompt(text, images, present)
        return self._rows[asked]

    def sees(self, names: Collection[str]) -> bool:
        """Whether calls with samples of these modalities may begin behind pictures.

        It is not yet known of a base on which ``inputs`` has not tried it.
        """
        return (
            self._goes_on.get(True, True)
            and self._pictures.possible
            and all(self.model.attends[name] == "answer" for name in names)
            and self._may_share()
        )

    def inputs(self, rows: Rows) -> dict[str, Any] | None:
        """What a call that begins at the last positions of prompts with pictures is given.

        Args:
            rows: that ``row`` made, where the model ``sees``.

        Returns:
            Ids, mask and cache, as ``generate`` takes them, and no picture; None where the base
            gives something else behind a cache.
        """
        ids = pad_left([row.ids for row in rows], self._pad)
        past = self._past(rows, ids.shape[1] - 1)
        if past is None:
            return None
        mask = pad_left([[1] * len(row.ids) for row in rows], 0)
        given = {"input_ids": ids, "attention_mask": mask}
        return {**on_device(given, self.model.device), "past_key_values": past}

    def _shares(self, batch: Mapping[str, Any]) -> bool:
        """Whether nothing but its ids decides what a prompt of the batch leaves."""
        own, given = split_by_modality((), batch, self.model.modalities)
        return (
            own.keys() == TEXT
            and is_prompt(self.model.base, own)
            and all(self.model.attends[name] == "answer" for name in given)
            and not any(FROM in inputs for inputs in given.values())
            and self._may_share()
        )

    def _may_share(self) -> bool:
        """Whether no known property of the model makes a prompt leave more than the base's own."""
        model = self.model
        return (
            goes_on(model.base)
            and not any(model.modality(name).markers for name in model.modalities)
            and not (model.split_rows or model.base_change or model.attention_probe.enabled)
            and compiled_call(model.base) is None
        )

    def _past(self, rows: Rows, columns: int) -> Any:
        """The cache behind which calls on rows begin; None where they are to be read whole.

        Args:
            rows: all with pictures, or all without.
            columns: that it has.
        """
        heads, pictured = list(map(_head, rows)), bool(rows[0].images)
        if not (self._goes_on.get(pictured, True) and all(head.ids for head in heads)):
            return None  # a prompt of one token leaves nothing
        past = None
        try:
            new = {h: row for h, row in zip(heads, rows, strict=True) if h not in self._kept}
            self._read_seen(new) if pictured else self._read(list(new))
            past = self._cache(heads, columns)
            if pictured not in self._goes_on:
                self._goes_on[pictured] = self._agrees(rows[:2])
        except (UnsupportedBaseError, InjectionError):  # its prompts are read whole
            self._goes_on[pictured] = False
        self._drop()
        return past if self._goes_on[pictured] else None

    def _read(self, heads: Rows) -> None:
        """Read prompts without their last positions, behind what many of them begin with."""
        for ids, own in openings(self.model, heads).items():
            opening = PromptRow(ids)
            found = self._opening(opening).left_by([behind(row, ids) for row in own])
            for row, past in zip(own, found, strict=True):
                self._keep(row, opening, past)

    def _opening(self, opening: PromptRow) -> SharedOpening:
        if opening not in self._shared:
            if self._in_trees is None:
                self._in_trees = reads_trees(self.model, self.prompts, self._pad)
            made = SharedOpening(self.model, self.prompts, self._pad, opening.ids, self._in_trees)
            self._shared[opening] = made
            self._open(opening, made.kept)
        return self._shared[opening]

    def _read_seen(self, rows: Mapping[PromptRow, PromptRow]) -> None:
        """Read prompts with pictures: up to the last of these, then what follows.

        Args:
            rows: by the prompt without its last position, the whole one.
        """
        seen, pictures = {head: opening_of(head) for head in rows}, self._pictures
        new = {seen[head]: row for head, row in rows.items() if seen[head] not in self._opened}
        for some in of_like_length(new, _TOKENS):
            call = pictures.on_pictures(some, [new[opening] for opening in some])
            for opening, past in zip(some, left_by_call(self.model, call), strict=True):
                self._open(opening, past)
        follows = {head: head.ids[len(seen[head].ids) :] for head in rows}
        for some in of_like_length([head for head in rows if follows[head]], _TOKENS):
            pasts = [self._opened[seen[head]] for head in some]
            call = pictures.behind(pasts, [follows[head] for head in some])
            for head, past in zip(some, left_by_call(self.model, call), strict=True):
                self._keep(head, seen[head], past)
        for head in rows:
            if not follows[head]:
                self._keep(head, seen[head], {})

    def _open(self, opening: PromptRow, past: Past) -> None:
        self._opened[opening] = {name: values.clone() for name, values in past.items()}
        self.bytes += _size(past)

    def _keep(self, head: PromptRow, opening: PromptRow, own: Past) -> None:
        """Keep what a prompt left behind an opening, apart from what others left beside it."""
        own = {name: values.clone() for name, values in own.items()}
        self._kept[head] = _Kept(opening, own)
        self.bytes += _size(own)

    def _cache(self, heads: Rows, columns: int) -> Any:
        rows = []
        for head in heads:
            kept = self._kept[head] = self._kept.pop(head)
            rows.append([part for part in (self._opened[kept.opening], kept.own) if part])
        return cache_of(rows, self.model.device, columns)

    def _agrees(self, rows: Rows) -> bool:
        """Whether the base gives behind what was kept what it gives of whole prompts."""
        batch = self.prompts.collate(rows, self._pad, left=True)
        whole, last = on_device(batch, self.model.device), self.model.stack.count - 1
        past = self._cache(list(map(_head, rows)), whole["input_ids"].shape[1] - 1)
        cut = {name: whole[name] for name in TEXT} | {"past_key_values": past}
        with base_errors():
            wanted, given = (
                self.model.prompt_states(one, [last])[last].last for one in (whole, cut)
            )
        return near(given, wanted)

    def _drop(self) -> None:
        """Forget what was asked for longest ago, as far as there is too much."""
        if self.bytes <= self.most_bytes:
            return
        while self._kept and self.bytes > self.most_bytes:
            self.bytes -= _size(self._kept.pop(next(iter(self._kept))).own)
        used = {kept.opening for kept in self._kept.values()}
        for opening in [opening for opening in self._opened if opening not in used]:
            self.bytes -= _size(self._opened.pop(opening))
            self._shared.pop(opening, None)


def _head(row: PromptRow) -> PromptRow:
    """A prompt without its last position, where modalities begin to act."""
    return attrs.evolve(row, ids=row.ids[:-1])


def _size(past: Past) -> int:
    return sum(values.nbytes for values in past.values())
