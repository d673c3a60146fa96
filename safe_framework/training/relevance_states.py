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
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow, Rows
from safe_framework.core.prompt_states import PromptEnd
from safe_framework.core.shared_opening import SharedOpening, behind, openings
from safe_framework.errors import InjectionError, UnsupportedBaseError
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.tensors import near

_TOKENS = 1024  # that are read together


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
    parts = openings(model, rows)
    if not reader.goes_on(parts):
        parts = {(): list(dict.fromkeys(rows))}
    done, count = 0, sum(map(len, parts.values()))
    for opening, own in parts.items():
        shared = reader.shared(opening)
        for some in _groups(own):
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

    def shared(self, opening: Sequence[int]) -> SharedOpening:
        """What rows begin with, to be read once."""
        return SharedOpening(self.model, self._prompts, self._pad, opening)

    def read(self, shared: SharedOpening, rows: Rows) -> ReadRows:
        """The states of rows that begin so."""
        left = [behind(row, shared.ids) for row in rows] if shared.ids else rows
        own = self._states(shared.inputs(left))
        before = self._opening(shared, own.states)
        states, mask = torch.zeros_like(own.states), torch.zeros_like(own.mask)
        begins = []
        for number, (found, real) in enumerate(zip(own.states, own.mask, strict=True)):
            whole = torch.cat([before, found[real]])[-self.columns :]
            states[number, self.columns - len(whole) :] = whole
            mask[number, self.columns - len(whole) :] = True
            begins.append(self.columns - min(int(real.sum()), self.columns))
        return ReadRows(rows, PromptEnd(states, mask), torch.tensor(begins))

    def goes_on(self, parts: Mapping[tuple[int, ...], Rows]) -> bool:
        """Whether the base gives the same behind what rows begin with, tried on two of them.

        Args:
            parts: rows by what they begin with.
        """
        tried = next((ids for ids in parts if ids), ())
        if not tried:
            return False
        rows = parts[tried][:2]
        whole = self.read(self.shared(()), rows).end
        try:
            with base_errors():
                cut = self.read(self.shared(tried), rows).end
        except (UnsupportedBaseError, InjectionError):  # its rows are read whole
            return False
        return bool((cut.mask == whole.mask).all()) and near(cut.states, whole.states)

    def _opening(self, shared: SharedOpening, like: Tensor) -> Tensor:
        """The states of the last columns of what rows begin with, (columns, hidden)."""
        if not shared.ids:
            return like.new_zeros(0, like.shape[2])
        if shared.ids not in self._openings:
            ids = torch.tensor([shared.ids], device=self.model.device)
            read = self._states({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            self._openings[shared.ids] = read.states[0][read.mask[0]]
        return self._openings[shared.ids]

    def _states(self, inputs: Mapping[str, Tensor]) -> PromptEnd:
        return self.model.prompt_states(inputs, [self.layer], self.columns)[self.layer]
