"""What rows with pictures begin with, up to the last place of these, read for many questions.

A picture takes more positions than most questions about it. A base that reads from left to right
gives the same there whatever is asked, so rows about one picture go on behind one reading of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs

from safe_framework.core.decoding import decodes_in_steps
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import on_device
from safe_framework.core.padding import attention_mask, pad_right, per_token_inputs
from safe_framework.core.past_rows import Past, behind_pasts
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow, Rows
from safe_framework.core.shared_opening import RowsCall, goes_on, unpadded
from safe_framework.errors import UnsupportedBaseError

TEXT = frozenset({"input_ids", "attention_mask"})
"""What a base may be told of each token, if its rows are to go on behind their pictures."""


class PictureOpenings:
    """Makes calls on what rows with pictures begin with, and on what follows there.

    Args:
        model: whose base reads them.
        prompts: makes batches of rows.
        pad: id of padding.
    """

    def __init__(self, model: SafeModel, prompts: PromptEncoder, pad: int) -> None:
        self.model, self.prompts, self.pad = model, prompts, pad

    @property
    def possible(self) -> bool:
        """Whether no known property of the base keeps rows from going on behind pictures.

        One that counts positions in several dimensions keeps where a picture moved them.
        """
        return goes_on(self.model.base) and decodes_in_steps(self.model.base)

    def on_pictures(self, openings: Rows, rows: Rows) -> RowsCall:
        """A call on what rows begin with.

        Args:
            openings: of the rows, as ``opening_of`` gives them.
            rows: as the encoder made them.

        Raises:
            UnsupportedBaseError: the base is told more of each token than its id.
        """
        batch, lengths = self.prompts.collate(rows, self.pad), [len(one.ids) for one in openings]
        if per_token_inputs(batch, batch["input_ids"].shape).keys() != TEXT:
            raise UnsupportedBaseError("the base is told more of each token than its id")
        mask = attention_mask([one.ids for one in openings])
        cut = {"input_ids": batch["input_ids"][:, : mask.shape[1]], "attention_mask": mask}
        inputs = on_device({**batch, **cut}, self.model.device)
        return RowsCall(inputs, lambda values: unpadded(values, lengths))

    def behind(self, pasts: Sequence[Past], texts: Sequence[Sequence[int]]) -> RowsCall:
        """A call on texts that go on behind pictures.

        Args:
            pasts: what is in the cache before each.
            texts: their ids; none is empty.
        """
        given = {"ids": pad_right(texts, self.pad), "mask": attention_mask(texts)}
        inputs = behind_pasts([[one] for one in pasts], **on_device(given, self.model.device))
        lengths = list(map(len, texts))
        return RowsCall(inputs, lambda values: unpadded(values, lengths))


def opening_of(row: PromptRow) -> PromptRow:
    """What a row has up to the last place of its pictures; all of it if nobody knows that."""
    places = [place for place, one in enumerate(row.ids) if one in row.placeholders]
    return attrs.evolve(row, ids=row.ids[: places[-1] + 1]) if places else row


def of_like_length(rows: Iterable[PromptRow], tokens: int) -> Iterator[list[PromptRow]]:
    """Rows of like length, so many together that they are about as many tokens."""
    found: list[PromptRow] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if found and len(row.ids) * (len(found) + 1) > tokens:
            yield found
            found = []
        found.append(row)
    if found:
        yield found
