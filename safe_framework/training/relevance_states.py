"""What relevance heads read of calls: the base's own states at their ends, a few rows at a time.

Calls in one prompt, or in one chat, begin alike. What many begin with is read once, and each call
behind it, where the base gives the same but for rounding: it is longer than most questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from safe_framework.core.base_errors import base_errors
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import layer_outputs
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow, Rows
from safe_framework.core.prompt_states import PromptEnd
from safe_framework.core.shared_opening import SharedOpening, behind, openings, reads_trees
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
    reader = EndReader(model, layer, columns)
    parts = openings(model, rows, _MANY) if reader.in_trees else openings(model, rows)
    if not reader.goes_on(parts):
        reader.in_trees = False
        parts = {(): list(dict.fromkeys(rows))}
    done, count = 0, sum(map(len, parts.values()))
    for opening, own in parts.items():
        shared = reader.shared(opening, own)
        groups = in_calls(own, len(opening)) if shared.in_trees else _groups(own)
        for some in groups:
            yield reader.read(shared, some)
            done += len(some)
            progress(label, done, count)


def _groups(rows: Rows) -> Iterator[list[PromptRow]]:
    """Rows of like length, so many together that they are about as many tokens; pictures alone."""
    found: list[PromptRow] = []
    for row in sorted(rows, key=lambda row: (bool(row.images), len(row))):
        alike = not found or bool(found[0].images) is bool(row.images)
        if found and (not alike or len(row) * (len(found) + 1) > _TOKENS):
            yield found
            found = []
        found.append(row)
    if found:
        yield found


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
        self._openings: dict[tuple[int, ...], Tensor] = {}
        self.in_trees = reads_trees(model, self._prompts, self._pad)

    def shared(self, opening: Sequence[int], rows: Rows) -> SharedOpening:
        """What rows begin with; they are read in trees behind it, if they can be."""
        in_trees = self.in_trees and not any(row.images or row.target for row in rows)
        return SharedOpening(self.model, self._prompts, self._pad, opening, in_trees)

    def read(self, shared: SharedOpening, rows: Rows) -> ReadRows:
        """The states of rows that begin so."""
        left = [behind(row, shared.ids) for row in rows] if shared.ids else rows
        before, found = self._opening(shared), self._of_rows(shared, left)
        states = found[0].new_zeros(len(rows), self.columns, found[0].shape[1])
        mask, begins = torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device), []
        for number, own in enumerate(found):
            parts = [own] if before is None else [before, own]
            whole = torch.cat(parts)[-self.columns :]
            states[number, self.columns - len(whole) :] = whole
            mask[number, self.columns - len(whole) :] = True
            begins.append(self.columns - min(len(own), self.columns))
        return ReadRows(rows, PromptEnd(states, mask), torch.tensor(begins))

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
