"""What relevance heads read of calls: the base's own states at their ends, a few rows at a time.

Calls in one prompt, or in one chat, begin alike. What many begin with is read once, and each call
behind it, where the base gives the same but for rounding: it is longer than most questions. So is
a picture, which is read once for all the calls about it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from safe_framework.core.base_errors import base_errors
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import layer_outputs
from safe_framework.core.picture_openings import (
    PictureOpenings,
    of_like_length,
    opening_of,
)
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow, Rows
from safe_framework.core.prompt_states import PromptEnd
from safe_framework.core.shared_opening import (
    SharedOpening,
    behind,
    left_below,
    openings,
    reads_trees,
)
from safe_framework.core.text_trees import in_calls
from safe_framework.errors import InjectionError, UnsupportedBaseError
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.tensors import near

_TOKENS = 1024  # that are read together
_MANY = 64  # rows that share an opening: trees share what fewer have in common


@attrs.frozen(eq=False)
class ReadRows:
    """Some rows, as the base read them.

    Attributes:
        rows: each once.
        end: what it gave at their ends.
        begins: the column at which each row goes on behind what many begin with, (rows,).
    """

    rows: Rows
    end: PromptEnd
    begins: Tensor


def read_ends(
    model: SafeModel,
    rows: Sequence[PromptRow],
    layer: int,
    columns: int,
    *,
    label: str = "states of the relevance gate",
    progress: ProgressCallback = no_progress,
) -> Iterator[ReadRows]:
    """The base's own states at the end of each row, each of which is read once.

    Args:
        model: in any mode; the base is always in that of evaluation.
        rows: without samples.
        layer: whose output is read, from 0.
        columns: how many positions of each row.
        label: what ``progress`` shows.
        progress: called after every few rows.
    """
    reader, distinct = EndReader(model, layer, columns), list(dict.fromkeys(rows))
    done = 0
    for read in itertools.chain(
        reader.of_texts([row for row in distinct if not row.images]),
        reader.of_pictures([row for row in distinct if row.images]),
    ):
        yield read
        done += len(read.rows)
        progress(label, done, len(distinct))


class EndReader:
    """Reads the ends of rows, behind what they begin with.

    Args:
        model: whose base reads them.
        layer: whose output is kept.
        columns: how many positions of each row.
    """

    def __init__(self, model: SafeModel, layer: int, columns: int) -> None:
        self.model, self.layer, self.columns = model, layer, columns
        self._prompts, self._pad = PromptEncoder.of(model), model.processor.padding
        self._pictures = PictureOpenings(model, self._prompts, self._pad)
        self._openings: dict[tuple[int, ...], Tensor] = {}
        self.in_trees = reads_trees(model, self._prompts, self._pad)

    def of_texts(self, rows: Rows) -> Iterator[ReadRows]:
        """Distinct rows without pictures, behind what many of them begin with."""
        parts = openings(self.model, rows, _MANY) if self.in_trees else openings(self.model, rows)
        if not self.goes_on(parts):
            self.in_trees = False
            parts = {(): list(rows)}
        for opening, own in parts.items():
            shared = self.shared(opening, own)
            groups = (
                in_calls(own, len(opening)) if shared.in_trees else of_like_length(own, _TOKENS)
            )
            for some in groups:
                yield self.read(shared, some)

    def of_pictures(self, rows: Rows) -> Iterator[ReadRows]:
        """Distinct rows with pictures, behind these."""
        about: dict[PromptRow, list[PromptRow]] = {}
        for row in rows:
            about.setdefault(opening_of(row), []).append(row)
        if len(about) == len(rows) or not self._goes_on_behind_pictures(rows[:2]):
            whole = SharedOpening(self.model, self._prompts, self._pad)
            for some in of_like_length(rows, _TOKENS):
                yield self.read(whole, some)
            return
        for pictures in of_like_length(about, _TOKENS):
            own = [row for one in pictures for row in about[one]]
            yield self._ends(own, self._behind_pictures(own), whole=True)

    def shared(self, opening: Sequence[int], rows: Rows) -> SharedOpening:
        """What rows begin with; they are read in trees behind it, if they can be."""
        in_trees = self.in_trees and not any(row.images or row.target for row in rows)
        return SharedOpening(self.model, self._prompts, self._pad, opening, in_trees)

    def read(self, shared: SharedOpening, rows: Rows) -> ReadRows:
        """The states of rows that begin so."""
        left = [behind(row, shared.ids) for row in rows] if shared.ids else rows
        before, found = self._opening(shared), self._of_rows(shared, left)
        return self._ends(rows, [[own] if before is None else [before, own] for own in found])

    def _ends(
        self, rows: Rows, parts: Sequence[Sequence[Tensor]], *, whole: bool = False
    ) -> ReadRows:
        """The states of rows that were read in parts.

        Args:
            rows: that were read.
            parts: the states of each, (length, hidden), in order.
            whole: whether all parts are a row's own, and not the last alone.
        """
        first = parts[0][0]
        states = first.new_zeros(len(rows), self.columns, first.shape[1])
        mask, begins = torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device), []
        for number, own in enumerate(parts):
            end = torch.cat(list(own))[-self.columns :]
            states[number, self.columns - len(end) :] = end
            mask[number, self.columns - len(end) :] = True
            begins.append(self.columns - min(len(end if whole else own[-1]), self.columns))
        return ReadRows(rows, PromptEnd(states, mask), torch.tensor(begins))

    def _goes_on_behind_pictures(self, rows: Rows) -> bool:
        """Whether the base gives the same behind the pictures of these rows as with them."""
        if not self._pictures.possible:
            return False
        wanted = self.read(SharedOpening(self.model, self._prompts, self._pad), rows).end
        try:
            given = self._behind_pictures(rows)
        except (UnsupportedBaseError, InjectionError):  # its rows are read whole
            return False
        end = self._ends(rows, given).end
        return bool((end.mask == wanted.mask).all()) and near(end.states, wanted.states)

    def _behind_pictures(self, rows: Rows) -> list[list[Tensor]]:
        """The states of rows in parts: up to the last of their pictures, and what follows."""
        openings = {row: opening_of(row) for row in rows}
        first = {openings[row]: row for row in rows}
        call = self._pictures.on_pictures(list(first), list(first.values()))
        left, outputs = left_below(self.model, call, self.layer)
        pasts = dict(zip(first, left, strict=True))
        states = dict(zip(first, outputs, strict=True))
        found = {row: [states[openings[row]]] for row in rows}
        follows = {row: row.ids[len(openings[row].ids) :] for row in rows}
        for some in of_like_length([row for row in rows if follows[row]], _TOKENS):
            before = [pasts[openings[row]] for row in some]
            call = self._pictures.behind(before, [follows[row] for row in some])
            _, behind_it = left_below(self.model, call, self.layer)
            for row, own in zip(some, behind_it, strict=True):
                found[row].append(own)
        return [[part[-self.columns :].float() for part in found[row]] for row in rows]

    def goes_on(self, parts: Mapping[tuple[int, ...], Rows]) -> bool:
        """Whether the base gives the same behind what rows begin with, and in trees.

        It is tried on two rows; False where there is nothing to try.

        Args:
            parts: rows by what they begin with.
        """
        tried = next((ids for ids in parts if ids), ())
        rows = parts.get(tried, [])[:2]
        if not rows or not (tried or self.in_trees):
            return False
        whole = self.read(SharedOpening(self.model, self._prompts, self._pad), rows).end
        try:
            with base_errors():
                cut = self.read(self.shared(tried, rows), rows).end
        except (UnsupportedBaseError, InjectionError):  # its rows are read whole
            return False
        return bool((cut.mask == whole.mask).all()) and near(cut.states, whole.states)

    def _opening(self, shared: SharedOpening) -> Tensor | None:
        """The states of the last columns of what rows begin with, (columns, hidden)."""
        if not shared.ids:
            return None
        if shared.ids not in self._openings:
            ids = torch.tensor([shared.ids], device=self.model.device)
            read = self._states({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            self._openings[shared.ids] = read.states[0][read.mask[0]]
        return self._openings[shared.ids]

    def _of_rows(self, shared: SharedOpening, rows: Rows) -> list[Tensor]:
        """The states of the last columns of each row, (columns, hidden), in float32."""
        if shared.in_trees:
            call = shared.call(rows)
            with torch.no_grad():
                (output,) = layer_outputs(self.model, call.inputs, [self.layer]).values()
            return [own[-self.columns :].float() for own in call.of_rows(output)]
        read = self._states(shared.inputs(rows))
        return [own[real] for own, real in zip(read.states, read.mask, strict=True)]

    def _states(self, inputs: Mapping[str, Tensor]) -> PromptEnd:
        return self.model.prompt_states(inputs, [self.layer], self.columns)[self.layer]
