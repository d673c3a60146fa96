"""Counts right answers and unchanged next tokens on held-out data, and disturbs nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from torch import Tensor

from safe_framework.core.model import SafeModel
from safe_framework.data.frame_cache import Row
from safe_framework.evaluation.answers import new_tokens
from safe_framework.evaluation.metrics import Estimate, bootstrap, exact_match
from safe_framework.training.batches import (
    IGNORED,
    AnswerCollator,
    TokenizedExample,
    attention_mask,
    modality_columns,
    pad_right,
)
from safe_framework.training.objective import answer_loss
from safe_framework.utils.sequences import batches

if TYPE_CHECKING:
    from safe_framework.config.schema import MonitorSpec


# One measurement, what it means for retention, and which of several is best.


@attrs.frozen
class Counts:
    """What was counted on held-out data, before any estimate.

    Attributes:
        right: 1.0 for each example that was answered right, 0.0 for any other.
        task_loss: mean loss of the held-out answers' tokens.
        agreed: positions of each text at which the next token is the base's.
        positions: of each text.
    """

    right: tuple[float, ...]
    task_loss: float
    agreed: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Agreement on each text."""
        return tuple(a / n for a, n in zip(self.agreed, self.positions, strict=True))


@attrs.frozen
class Reading:
    """Gain and retention at one step, with 95 % intervals.

    Attributes:
        step: optimizer steps that had been taken.
        stage: of the curriculum; empty without one.
        gain: share of held-out examples that were answered right at gate 1.
        task_loss: mean loss of their answers' tokens.
        retention: agreement with the base on held-out texts, at gate 1 beside irrelevant samples.
        change: paired difference of retention from the start of training.
    """

    step: int
    stage: str
    gain: Estimate
    task_loss: float
    retention: Estimate
    change: Estimate

    @classmethod
    def of(
        cls,
        counts: Counts,
        first: Sequence[float],
        *,
        step: int,
        stage: str,
        resamples: int,
        seed: int,
    ) -> Reading:
        """The reading of some counts.

        Args:
            counts: what was counted.
            first: agreement on each text at the start of training.
            step: optimizer steps that had been taken.
            stage: of the curriculum.
            resamples: of the intervals, which draw whole examples and texts.
            seed: of the intervals.
        """
        drawing: dict[str, Any] = {"resamples": resamples, "seed": seed}
        shares, weights = np.array(counts.shares), counts.positions
        return cls(
            step=step,
            stage=stage,
            gain=bootstrap(counts.right, **drawing),
            task_loss=counts.task_loss,
            retention=bootstrap(shares, weights=weights, **drawing),
            change=bootstrap(shares - np.array(first), weights=weights, **drawing),
        )

    def to_dict(self) -> dict[str, Any]:
        """What can be written as JSON."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> Reading:
        """Read what ``to_dict`` gave; other keys are left alone."""
        values = {field.name: held[field.name] for field in attrs.fields(cls)}
        for name in ("gain", "retention", "change"):
            values[name] = Estimate(**values[name])
        return cls(**values)

    @property
    def measured(self) -> Mapping[str, float]:
        """What a stage of a curriculum may wait for."""
        return {
            "accuracy": self.gain.value,
            "task_loss": self.task_loss,
            "retention": self.retention.value,
        }


def keeps(reading: Reading, spec: MonitorSpec) -> bool:
    """Whether what was measured lies within the tolerance, and not below the floor."""
    return reading.change.value >= -spec.tolerance and reading.retention.value >= spec.floor


def forgets(reading: Reading, spec: MonitorSpec) -> bool:
    """Whether retention has fallen for certain: its whole interval lies beyond the limit.

    What lies beyond the limit with a part of its interval alone may be chance.
    """
    return reading.change.high < -spec.tolerance or reading.retention.high < spec.floor


def limit(reading: Reading, spec: MonitorSpec) -> float:
    """The agreement that still counts as kept."""
    first = reading.retention.value - reading.change.value
    return max(first - spec.tolerance, spec.floor)


def front(readings: Sequence[Reading]) -> list[Reading]:
    """Those that no other one beats in both gain and retention, in the order of their steps."""
    return [
        one for one in readings if not any(_beats(other, one) for other in readings if other != one)
    ]


def _beats(one: Reading, other: Reading) -> bool:
    gain, kept = one.gain.value - other.gain.value, one.retention.value - other.retention.value
    if gain == 0 and kept == 0:  # alike in both: of the lower loss, or else the later one
        return (-one.task_loss, one.step) > (-other.task_loss, other.step)
    return gain >= 0 and kept >= 0


def best(readings: Sequence[Reading], spec: MonitorSpec) -> Reading:
    """The one of most gain among those that keep retention, or the one of most retention.

    Among equal gains it is the one of more retention, then of the lower loss, then the later.
    """
    kept = [one for one in readings if keeps(one, spec)]
    if not kept:
        return max(readings, key=lambda one: (one.retention.value, one.gain.value, one.step))
    return max(kept, key=_rank)


def _rank(one: Reading) -> tuple[float, float, float, int]:
    return one.gain.value, one.retention.value, -one.task_loss, one.step


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
            carried |= modality_columns(name, [one.get(name) for one in frames], dim)
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
