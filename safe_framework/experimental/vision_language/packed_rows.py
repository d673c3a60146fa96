"""Several questions about one picture in one row, and several texts in another.

All questions about a picture share its tokens: they stand behind one another, and a mask lets
each see the picture and itself alone, at the positions that it would have alone. So every logit is
what it would be if the question were asked alone, and the picture is run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.padding import pad_right
from safe_framework.experimental.vision_language.compose import IMAGE
from safe_framework.experimental.vision_language.scenes import Question

_END_WEIGHT = 0.2  # of an answer's end, beside the mean of its other tokens


@attrs.frozen
class Segment:
    """What follows a row's beginning, unseen by the row's other segments.

    Attributes:
        given: ids that are read; where the row has no beginning, at least one.
        scored: the ids after them, which are to be predicted.
    """

    given: Sequence[int]
    scored: Sequence[int]


@attrs.frozen
class Row:
    """Ids that all segments see, and the segments.

    Attributes:
        beginning: the prompt up to its picture's end; empty for texts.
        segments: one for each question, or text.
    """

    beginning: Sequence[int]
    segments: Sequence[Segment]


@attrs.frozen(eq=False)
class PackedRows:
    """Rows as a batch.

    Attributes:
        inputs: ``input_ids``, ``attention_mask`` (batch, 1, length, length) and ``position_ids``.
        positions: True before each scored token, (batch, length).
        targets: the scored tokens, row after row, (scored,).
        ends: how many are scored up to the end of each segment.
    """

    inputs: dict[str, Tensor]
    positions: Tensor
    targets: Tensor
    ends: Sequence[int]

    @property
    def weights(self) -> Tensor:
        """How much each scored token counts: a long answer as much as a yes, its end for little."""
        found = []
        for start, end in zip([0, *self.ends[:-1]], self.ends, strict=True):
            found += [1 / max(end - start - 1, 1)] * (end - start - 1) + [_END_WEIGHT]
        return torch.tensor(found) / len(self.ends)


def pack(rows: Sequence[Row], pad: int, dtype: torch.dtype = torch.float32) -> PackedRows:
    """The batch of some rows.

    Args:
        rows: to be packed.
        pad: the id of padding.
        dtype: of the mask, which is added to the attention's scores.
    """
    ids, groups, positions, scored = (list[list[int]]() for _ in range(4))
    targets, ends = list[int](), list[int]()
    for row in rows:
        start = len(row.beginning)
        ids.append(list(row.beginning))
        groups.append([0] * start)
        positions.append(list(range(start)))
        scored.append([0] * start)
        for number, segment in enumerate(row.segments, 1):
            given, after = len(segment.given), len(segment.scored)
            ids[-1] += [*segment.given, *segment.scored]
            groups[-1] += [number] * (given + after)
            positions[-1] += range(start, start + given + after)
            scored[-1] += [0] * (given - 1) + [1] * after + [0]
            targets += segment.scored
            ends.append(len(targets))
    group = pad_right(groups, -1)  # (batch, length)
    length = group.shape[1]
    same = group.unsqueeze(2) == group.unsqueeze(1)
    seen = torch.ones(length, length, dtype=torch.bool).tril() & (same | (group == 0).unsqueeze(1))
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    inputs = {
        "input_ids": pad_right(ids, pad),
        "attention_mask": mask.unsqueeze(1),
        "position_ids": pad_right(positions, 0),
    }
    return PackedRows(inputs, pad_right(scored, 0).bool(), torch.tensor(targets), ends)


class QuestionPrompt:
    """A recipe's prompt around a question about a picture, as ids.

    Args:
        tokenizer: of the composed base.
        prompt: holds ``<image>``, and ``{question}`` after it.
        tokens: how many a picture takes.
    """

    def __init__(self, tokenizer: Any, prompt: str, tokens: int) -> None:
        before, _, after = prompt.partition(IMAGE)
        self.between, _, self.after = after.partition("{question}")
        self.tokenizer, self.end = tokenizer, tokenizer.eos_token_id
        image = tokenizer.convert_tokens_to_ids(IMAGE)
        self.beginning = [*tokenizer(before)["input_ids"], *[image] * tokens]

    def row(self, questions: Sequence[Question]) -> Row:
        """The row of some questions about one picture."""
        segments = []
        for one in questions:
            given = self._ids(f"{self.between}{one.text}{self.after}")
            segments.append(Segment(given, [*self._ids(one.answer), self.end]))
        return Row(self.beginning, segments)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
