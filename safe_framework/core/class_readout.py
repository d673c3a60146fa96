"""Classes that are read at a modality's own tokens, between its markers, instead of as an answer.

The logits at each of these tokens, at the first id of every label, are the class logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.markers.text import MarkerText
from safe_framework.data.examples import Example
from safe_framework.errors import DataError
from safe_framework.interfaces.types import IGNORED

CLASS_COLUMNS = ("class_ids", "class_target", "class_positions")
"""The columns of a batch that say which classes are read where."""


@attrs.frozen(eq=False)
class ClassTarget:
    """What is read at the tokens of one row.

    Attributes:
        ids: the first id of each label.
        target: which label is right.
        positions: where the modality's tokens stand in the prompt.
    """

    ids: tuple[int, ...]
    target: int
    positions: tuple[int, ...]


def class_target(
    tokenizer: Any, example: Example, prompt: Sequence[int], markers: MarkerText | None
) -> ClassTarget | None:
    """What is read at the tokens of an example; None if it is answered, as a row without a sample.

    Raises:
        DataError: two labels begin with the same id.
    """
    positions = token_positions(prompt, markers) if example.at_tokens else ()
    if not positions:
        return None
    ids = first_ids(tokenizer, example.labels)
    return ClassTarget(ids, example.labels.index(example.answer), positions)


def token_positions(prompt: Sequence[int], markers: MarkerText | None) -> tuple[int, ...]:
    """Where the tokens of modalities stand in a prompt."""
    inside = {one for span in (markers.spans.values() if markers else ()) for one in span[1:-1]}
    return tuple(position for position, one in enumerate(prompt) if one in inside)


def first_ids(tokenizer: Any, labels: Sequence[str]) -> tuple[int, ...]:
    """The first id of each label.

    Raises:
        DataError: two have the same.
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    owner: dict[int, str] = {}
    for label in labels:
        first = inner(label, add_special_tokens=False)["input_ids"][0]
        if first in owner:
            raise DataError(
                f"the labels `{owner[first]}` and `{label}` begin with the same token, so they"
                " cannot be told apart at one place",
                hint='read them as answers: `read_at = "answer"`',
            )
        owner[first] = label
    return tuple(owner)


@attrs.frozen(eq=False)
class ClassReadout:
    """The same, taken out of a batch.

    Attributes:
        ids: (batch, labels), -100 where a row has fewer.
        target: (batch,), -100 where a row is answered.
        positions: True at the tokens, (batch, length).
    """

    ids: Tensor
    target: Tensor
    positions: Tensor

    @classmethod
    def taken(cls, batch: dict[str, Any]) -> ClassReadout | None:
        """Take them out of a batch that the model is about to get; None if it has none."""
        return (
            cls(*(batch.pop(key) for key in CLASS_COLUMNS)) if CLASS_COLUMNS[0] in batch else None
        )

    def losses(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """Mean cross-entropy over the tokens of each row that is read there, (rows,).

        Args:
            logits: at chosen positions, row after row, (chosen, vocabulary).
            chosen: True at these positions, (batch, length).
        """
        owner = chosen.nonzero()[:, 0]  # (chosen,)
        here = self.positions[chosen]  # (chosen,)
        found = []
        for row in (self.target != IGNORED).nonzero().flatten().tolist():
            ids = self.ids[row][self.ids[row] != IGNORED]
            read = class_logits(logits[here & (owner == row)], ids)  # (tokens, labels)
            wanted = self.target[row].expand(len(read))
            found.append(nn.functional.cross_entropy(read, wanted))
        return torch.stack(found)


def class_logits(logits: Tensor, ids: Tensor) -> Tensor:
    """Class logits at some positions, (positions, vocabulary) -> (positions, labels)."""
    return logits.float()[:, ids]


def mean_loss(
    logits: Tensor, targets: Tensor, classes: ClassReadout, count: Tensor | None = None
) -> Tensor:
    """The mean over answers' tokens and over rows that are read at their tokens, one unit each.

    Args:
        logits: where either is read, row after row, (chosen, vocabulary).
        targets: the next token of each position, -100 where none is wanted, (batch, length).
        classes: what is read at tokens.
        count: of these units, where the batch is a part of those that share them.
    """
    chosen = (targets != IGNORED) | classes.positions
    spelled = nn.functional.cross_entropy(
        logits.float(), targets[chosen], ignore_index=IGNORED, reduction="sum"
    )
    read = classes.losses(logits, chosen)
    own = int((targets != IGNORED).sum()) + len(read)
    return (spelled + read.sum()) / (own if count is None else count)
