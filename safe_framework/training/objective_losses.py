"""The task's loss: what a batch asks of a model, and what its words are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.class_readout import Classes, mean_loss
from safe_framework.core.output_head import logits_at
from safe_framework.training.batches import IGNORED
from safe_framework.training.compute.calls_words import LogitWords, Words


@attrs.frozen(eq=False)
class Answers:
    """A batch's inputs, and the answers that are wanted.

    Attributes:
        inputs: of the call.
        places: True where a word is scored, (batch, length).
        targets: the next token of each position, ``IGNORED`` where none is scored.
        classes: what is read at a modality's tokens; None for nothing.
    """

    inputs: Mapping[str, Tensor]
    places: Tensor
    targets: Tensor
    classes: Classes | None

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Answers:
        """Take them out of ``input_ids``, ``attention_mask``, ``labels``, modalities, classes."""
        inputs = dict(batch)
        classes = Classes.taken(inputs)
        targets = nn.functional.pad(inputs.pop("labels")[:, 1:], (0, 1), value=IGNORED)
        places = targets != IGNORED  # position t predicts token t + 1
        if classes is not None:
            places = places | classes.places
        return cls(inputs, places, targets, classes)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """At which the loss looks at the softmax of its words; class logits are looked at whole."""
        return (1.0,) if self.classes is None else ()

    def loss(self, words: Words, count: Tensor | None = None) -> Tensor:
        """Mean next-token cross-entropy over the words.

        Args:
            words: at the places.
            count: of labelled positions (and rows that are read at their tokens), over which the
                mean is taken, where the batch is a part of those that share them; its own if None.
        """
        if self.classes is not None:
            return mean_loss(words.logits, self.targets, self.classes, count)
        wanted = self.targets[self.places]
        return words.cross_entropy(wanted) / (len(wanted) if count is None else count)


def answer_loss(
    model: nn.Module, base: nn.Module, batch: Mapping[str, Any], count: Tensor | None = None
) -> Tensor:
    """The loss of one batch by a call of its own, which makes the logits of its words.

    Args:
        model: a SafeModel, or what is called like one.
        base: its base, whose output embeddings are shown only some positions.
        batch: as ``Answers.of`` wants it.
        count: as in ``Answers.loss``.
    """
    answers = Answers.of(batch)
    logits = logits_at(model, base, answers.inputs, answers.places)
    return answers.loss(LogitWords(logits), count)


def check_finite(loss: Tensor, name: str, step: int) -> Tensor:
    """The loss, if it is a number.

    Raises:
        FloatingPointError: it is NaN or infinite.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the {name} is {loss.item()} at step {step}\n"
            "hint: lower the learning rates in [training]"
        )
    return loss
