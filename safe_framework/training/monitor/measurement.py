"""Counts right answers and unchanged next tokens on held-out data, and disturbs nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs
import numpy as np
import torch
from torch import Tensor

from safe_framework.core.model import SafeModel
from safe_framework.data.frame_cache_unencoded import Row
from safe_framework.evaluation.answers import new_tokens
from safe_framework.evaluation.metrics import exact_match
from safe_framework.training.batches import (
    IGNORED,
    AnswerCollator,
    TokenizedExample,
    attention_mask,
    carry,
    pad_right,
)
from safe_framework.training.monitor.measurement_reading import Counts
from safe_framework.training.objective_losses import answer_loss
from safe_framework.utils.sequences_groups import batches

_TEXTS = 16  # at a time: logits of a large vocabulary are what fills the memory


@attrs.frozen(eq=False)
class HeldText:
    """A text of the base's own domain, and the irrelevant samples beside it.

    Attributes:
        plain: its token ids.
        marked: the same with the markers of every modality.
        frames: of an irrelevant sample, by modality.
    """

    plain: Sequence[int]
    marked: Sequence[int]
    frames: Mapping[str, Row]


class Ruler:
    """Measures a model on the same held-out data again and again.

    Args:
        model: to be measured, in training or not; it is left as it is.
        examples: of the task, never trained on.
        texts: of the base's domain, never trained on.
        batch_size: examples at a time.
        max_new_tokens: limit of an answer's length.
        pad: id that fills rows up.
    """

    def __init__(
        self,
        model: SafeModel,
        examples: Sequence[TokenizedExample],
        texts: Sequence[HeldText],
        *,
        batch_size: int,
        max_new_tokens: int,
        pad: int,
    ) -> None:
        self.model, self.pad = model, pad
        self.examples = sorted(examples, key=lambda one: len(one.prompt))  # little padding
        self.texts = sorted(texts, key=lambda text: len(text.plain))
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.dims = {name: model.modality(name).encoder.dim for name in model.modalities}
        self._base: list[Tensor] = []  # the base's next tokens on each text

    @torch.no_grad()
    def count(self) -> Counts:
        """Measure the model as it is now, with every gate at 1."""
        with undisturbed(self.model):
            right, losses, tokens = list[float](), list[float](), list[int]()
            for rows in batches(self.examples, self.batch_size):
                answers = self._answers(rows)
                right += exact_match(answers, [one.text for one in rows]).tolist()
                loss, count = self._loss(rows)
                losses.append(loss * count)
                tokens.append(count)
            return Counts(
                right=tuple(right),
                task_loss=sum(losses) / sum(tokens),
                agreed=tuple(self._compared()),
                positions=tuple(len(text.plain) for text in self.texts),
            )

    def _answers(self, rows: Sequence[TokenizedExample]) -> list[str]:
        prompts = [one.prompt for one in rows]
        batch = {
            "input_ids": _pad_left(prompts, self.pad),
            "attention_mask": _pad_left([[1] * len(row) for row in prompts], 0),
            **self._carried([one.frames for one in rows]),
        }
        batch = self._moved(batch)
        tokens = self.model.generate(
            **batch, max_new_tokens=self.max_new_tokens, do_sample=False, pad_token_id=self.pad
        )
        decode = self.model.tokenizer.batch_decode
        said: list[str] = decode(new_tokens(self.model, tokens, batch), skip_special_tokens=True)
        return [text.strip() for text in said]

    def _loss(self, rows: Sequence[TokenizedExample]) -> tuple[float, int]:
        batch = AnswerCollator(self.dims, self.pad)(rows)
        del batch["answers"]
        count = int((batch["labels"][:, 1:] != IGNORED).sum())
        return float(answer_loss(self.model, self.model.base, self._moved(batch))), count

    def _compared(self) -> list[int]:
        """At how many positions of each text the model and its base agree."""
        found: list[int] = []
        for rows in batches(self.texts, _TEXTS):
            if len(self._base) < len(found) + len(rows):
                self._base += self._next_of_base(rows)
            marked = [text.marked for text in rows]
            batch = {
                "input_ids": pad_right(marked, self.pad),
                "attention_mask": attention_mask(marked),
                **self._carried([text.frames for text in rows]),
            }
            said = self.model(**self._moved(batch)).logits.argmax(-1).cpu()  # (batch, length)
            words = self.model.processor.markers.words(batch["input_ids"])
            words = words & batch["attention_mask"].bool()
            for place in range(len(rows)):
                own = said[place][words[place]]
                found.append(int((own == self._base[len(found)]).sum()))
        return found

    def _next_of_base(self, rows: Sequence[HeldText]) -> list[Tensor]:
        plain = [text.plain for text in rows]
        ids, mask = pad_right(plain, self.pad), attention_mask(plain)
        with self.model.off():
            batch = self._moved({"input_ids": ids, "attention_mask": mask})
            said = self.model(**batch).logits.argmax(-1).cpu()
        return [row[: len(text)] for row, text in zip(said, plain, strict=True)]

    def _carried(self, frames: Sequence[Mapping[str, Row]]) -> dict[str, Tensor]:
        carried: dict[str, Tensor] = {}
        for name, dim in self.dims.items():
            carried |= carry(name, [one.get(name) for one in frames], dim)
        return carried

    def _moved(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.model.device) for key, value in batch.items()}


@contextmanager
def undisturbed(model: SafeModel) -> Iterator[None]:
    """Evaluation mode and gates at 1 within the block; afterwards all is as it was.

    Nothing random that the block draws is missed by what comes after it.
    """
    training, gates = model.training, model.gates
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        model.eval()
        model.set_gate(1.0)
        try:
            yield
        finally:
            for name, gate in gates.items():
                model.set_gate(gate, name)
            model.train(training)
            random.setstate(python)
            np.random.set_state(arrays)


def _pad_left(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*[value] * (width - len(row)), *row] for row in rows])
