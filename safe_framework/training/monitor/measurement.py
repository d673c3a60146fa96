"""Measures gain and retention of a model on held-out data, and leaves the model as it is.

Gain is the share of right answers; retention is the share of the base's next tokens that are
unchanged. A measurement also says whether retention is kept, and which of several is best.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import numpy as np
import torch
from torch import Tensor

from safe_framework.core.attend import whole_text_columns
from safe_framework.core.model import SafeModel
from safe_framework.core.padding import pad_right
from safe_framework.core.prompt_rows import (
    PromptEncoder,
    PromptRow,
    Rows,
    as_row,
    groups_of,
    read_positions,
)
from safe_framework.data.frame_cache import CachedSamples
from safe_framework.evaluation.answers import new_tokens
from safe_framework.evaluation.metrics import Estimate, bootstrap, exact_match
from safe_framework.interfaces.types import IGNORED
from safe_framework.training.batches import AnswerCollator, TokenizedExample, modality_columns
from safe_framework.training.objective import answer_loss
from safe_framework.utils.sequences import batched

if TYPE_CHECKING:
    from safe_framework.config.schema import MonitorSpec

_Item = TypeVar("_Item")


@attrs.frozen
class HeldOutCounts:
    """Counts on held-out data, from which intervals are estimated.

    Attributes:
        right: 1.0 for each example that was answered correctly, 0.0 for any other.
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
class Measurement:
    """Gain and retention at one step, with 95 % intervals.

    Attributes:
        step: optimizer steps that had been taken.
        stage: of the curriculum; empty without one.
        gain: share of held-out examples that were answered correctly at gate 1.
        task_loss: mean loss of their answers' tokens.
        retention: agreement with the base on held-out texts, at gate 1 with distractors.
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
        counts: HeldOutCounts,
        first: Sequence[float],
        *,
        step: int,
        stage: str,
        resamples: int,
        seed: int,
    ) -> Measurement:
        """The estimates from some counts.

        Args:
            counts: what was counted.
            first: agreement on each text at the start of training.
            step: optimizer steps that had been taken.
            stage: of the curriculum.
            resamples: of the intervals, which draw whole examples and texts.
            seed: of the intervals.
        """
        options: dict[str, Any] = {"resamples": resamples, "seed": seed}
        shares, weights = np.array(counts.shares), counts.positions
        return cls(
            step=step,
            stage=stage,
            gain=bootstrap(counts.right, **options),
            task_loss=counts.task_loss,
            retention=bootstrap(shares, weights=weights, **options),
            change=bootstrap(shares - np.array(first), weights=weights, **options),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        """Read what ``to_dict`` gave; other keys are ignored."""
        fields = {field.name: values[field.name] for field in attrs.fields(cls)}
        for name in ("gain", "retention", "change"):
            fields[name] = Estimate(**fields[name])
        return cls(**fields)

    @property
    def values(self) -> Mapping[str, float]:
        """What a stage of a curriculum may wait for."""
        return {
            "accuracy": self.gain.value,
            "task_loss": self.task_loss,
            "retention": self.retention.value,
        }


def retains(measurement: Measurement, spec: MonitorSpec) -> bool:
    """Whether what was measured lies within the tolerance, and not below the floor."""
    return measurement.change.value >= -spec.tolerance and measurement.retention.value >= spec.floor


def has_forgotten(measurement: Measurement, spec: MonitorSpec) -> bool:
    """Whether retention has certainly fallen: its whole interval lies beyond the limit.

    Where only a part of the interval lies beyond the limit, it may be chance.
    """
    return measurement.change.high < -spec.tolerance or measurement.retention.high < spec.floor


def retention_limit(measurement: Measurement, spec: MonitorSpec) -> float:
    """The agreement that still counts as kept."""
    first = measurement.retention.value - measurement.change.value
    return max(first - spec.tolerance, spec.floor)


def pareto_front(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Those that no other one dominates in both gain and retention, in the order of their steps."""
    return [
        one
        for one in measurements
        if not any(_dominates(other, one) for other in measurements if other != one)
    ]


def _dominates(one: Measurement, other: Measurement) -> bool:
    gain, kept = one.gain.value - other.gain.value, one.retention.value - other.retention.value
    if gain == 0 and kept == 0:  # equal in both: the one of lower loss, or else the later one
        return (-one.task_loss, one.step) > (-other.task_loss, other.step)
    return gain >= 0 and kept >= 0


def best(measurements: Sequence[Measurement], spec: MonitorSpec) -> Measurement:
    """The one of most gain among those that keep retention, or the one of most retention.

    Among equal gains it is the one of more retention, then of the lower loss, then the later.
    """
    kept = [one for one in measurements if retains(one, spec)]
    if not kept:
        return max(measurements, key=lambda one: (one.retention.value, one.gain.value, one.step))
    return max(kept, key=_rank)


def _rank(one: Measurement) -> tuple[float, float, float, int]:
    return one.gain.value, one.retention.value, -one.task_loss, one.step


_TEXT_BATCH_SIZE = 16  # logits of a large vocabulary fill the memory


@attrs.frozen(eq=False)
class HeldOutText:
    """A text of the base's own domain, and a distractor of each modality.

    Attributes:
        plain: its token ids and pictures; plain ids are a text without pictures.
        marked: the same with the markers of every modality.
        frames: of a distractor, by modality.
    """

    plain: PromptRow = attrs.field(converter=as_row)
    marked: PromptRow = attrs.field(converter=as_row)
    frames: Mapping[str, CachedSamples]


class HeldOutEvaluator:
    """Measures a model on the same held-out data, many times.

    Args:
        model: to be measured, in training or not; it is left as it is.
        examples: of the task, never trained on.
        texts: of the base's domain, never trained on.
        batch_size: examples at a time.
        max_new_tokens: limit of an answer's length.
        pad: id of padding.
    """

    def __init__(
        self,
        model: SafeModel,
        examples: Sequence[TokenizedExample],
        texts: Sequence[HeldOutText],
        *,
        batch_size: int,
        max_new_tokens: int,
        pad: int,
    ) -> None:
        self.model, self.pad = model, pad
        # Like lengths need little padding; rows with pictures have calls of their own.
        self.examples = sorted(examples, key=lambda one: _order(one.prompt))
        self.texts = sorted(texts, key=lambda text: _order(text.plain))
        self.prompts = PromptEncoder.of(model)
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.dims = {name: encoder.dim for name, encoder in model.encoders.items()}
        self._base_tokens: list[Tensor] = []  # the base's next tokens on each text

    @torch.no_grad()
    def count(self) -> HeldOutCounts:
        """Measure the model as it is now, with every gate at 1."""
        with preserved_state(self.model):
            right, losses, tokens = list[float](), list[float](), list[int]()
            for rows in _batches(self.examples, [e.prompt for e in self.examples], self.batch_size):
                answers = self._answers(rows)
                right += exact_match(answers, [one.text for one in rows]).tolist()
                loss, count = self._loss(rows)
                losses.append(loss * count)
                tokens.append(count)
            return HeldOutCounts(
                right=tuple(right),
                task_loss=sum(losses) / sum(tokens),
                agreed=tuple(self._agreements()),
                positions=tuple(text.plain.words for text in self.texts),
            )

    def _answers(self, rows: Sequence[TokenizedExample]) -> list[str]:
        batch = self.prompts.collate([one.prompt for one in rows], self.pad, left=True)
        batch.pop("decoder_input_ids", None)  # `generate` begins with it by itself
        batch |= self._modality_columns([one.frames for one in rows])
        batch = self._on_device(batch)
        tokens = self.model.generate(
            **batch, max_new_tokens=self.max_new_tokens, do_sample=False, pad_token_id=self.pad
        )
        decode = self.model.tokenizer.batch_decode
        answers: list[str] = decode(new_tokens(self.model, tokens, batch), skip_special_tokens=True)
        return [text.strip() for text in answers]

    def _loss(self, rows: Sequence[TokenizedExample]) -> tuple[float, int]:
        batch = AnswerCollator(self.dims, self.pad, self.prompts, attends=self.model.attends)(rows)
        del batch["answers"]
        count = int((batch["labels"][:, 1:] != IGNORED).sum())
        return float(answer_loss(self.model, self.model.base, self._on_device(batch))), count

    def _agreements(self) -> list[int]:
        """At how many positions of each text the model and its base agree."""
        found: list[int] = []
        plain = [text.plain for text in self.texts]
        for rows in _batches(self.texts, plain, _TEXT_BATCH_SIZE):
            if len(self._base_tokens) < len(found) + len(rows):
                self._base_tokens += self._base_next_tokens(rows)
            marked = [text.marked for text in rows]
            batch = self.prompts.collate(marked, self.pad)
            batch |= self._modality_columns([text.frames for text in rows])
            batch |= whole_text_columns(self.model.attends, batch)
            predicted = self.model(**self._on_device(batch)).logits.argmax(-1).cpu()
            ids = pad_right([row.predicting for row in marked], self.pad)
            is_text = self.model.processor.markers.words(ids) & read_positions(marked)
            for row in range(len(rows)):
                own = predicted[row][is_text[row]]
                found.append(int((own == self._base_tokens[len(found)]).sum()))
        return found

    def _base_next_tokens(self, rows: Sequence[HeldOutText]) -> list[Tensor]:
        plain = [text.plain for text in rows]
        with self.model.off():
            batch = self._on_device(self.prompts.collate(plain, self.pad))
            predicted = self.model(**batch).logits.argmax(-1).cpu()
        read = read_positions(plain)
        return [row[at] for row, at in zip(predicted, read, strict=True)]

    def _modality_columns(self, frames: Sequence[Mapping[str, CachedSamples]]) -> dict[str, Tensor]:
        columns: dict[str, Tensor] = {}
        for name, dim in self.dims.items():
            columns |= modality_columns(name, [one.get(name) for one in frames], dim)
        return columns

    def _on_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.model.device) for key, value in batch.items()}


def _order(row: PromptRow) -> tuple[bool, int]:
    return bool(row.images), len(row.ids)


def _batches(items: Sequence[_Item], rows: Rows, size: int) -> Iterator[Sequence[_Item]]:
    """Batches of items, none of which has both rows with pictures and rows without."""
    for group in groups_of(rows):
        yield from batched([items[i] for i in group], size)


@contextmanager
def preserved_state(model: SafeModel) -> Iterator[None]:
    """Evaluation mode and gates at 1 within the block; all is restored, random states too."""
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
