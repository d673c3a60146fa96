"""Retention while the base is fine-tuned: its own texts, without a sample and with distractors.

While the base was frozen, a text without a sample could not change. Now it can, so such texts are
replayed and distilled towards the original base. The retention methods work as in Stage A, and
their examples before the first step have each text both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import on_device
from safe_framework.core.prompt_rows import Rows, groups_of, read_positions
from safe_framework.interfaces.retention import RetentionRegularizer
from safe_framework.training.compute.activation_cache import ActivationStore
from safe_framework.training.compute.calls import ForwardCall, LossTerm, Predictions
from safe_framework.training.compute.chunked_vocabulary import SoftmaxStatistics
from safe_framework.training.distributed import WHOLE_STEP, StepShard
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    RetentionExamples,
    WeightedRegularizer,
)
from safe_framework.training.retention.teacher import Teacher, TeacherPredictions
from safe_framework.training.sampling import TextOrder
from safe_framework.utils.progress import ProgressCallback
from safe_framework.utils.sequences import LazySequence


class OriginalBaseTeacher(Teacher):
    """A teacher that predicts as the base did before it was changed.

    Args:
        model: whose base changes.
        teacher: of its retention texts.
    """

    def __init__(self, model: SafeModel, teacher: Teacher) -> None:
        super().__init__(model, teacher.pad, teacher.states, teacher.prompts)

    def logits(self, rows: Rows) -> Tensor:
        """The original base's logits, (tokens, vocabulary)."""
        with self.model.original_base():
            return super().logits(rows)

    def hidden(self, rows: Rows) -> Tensor:
        """The input of the original's output embeddings, (tokens, hidden)."""
        with self.model.original_base():
            return super().hidden(rows)

    def softmax(self, rows: Rows, hidden: Tensor, temperature: float) -> SoftmaxStatistics:
        """The original's softmax over the vocabulary, as a divergence needs it."""
        with self.model.original_base():
            return super().softmax(rows, hidden, temperature)


@attrs.frozen(eq=False)
class Replay:
    """Texts without a sample, distilled towards the original base.

    Attributes:
        rows: the texts with their pictures.
        teacher: the original base.
        method: whose penalty is taken.
        weight: of the penalty.
        order: which texts a step has.
        states: activations of the texts; None stores nothing.
        pad: id of padding.
    """

    rows: Rows
    teacher: Teacher
    method: RetentionRegularizer
    weight: float
    order: TextOrder
    states: ActivationStore | None
    pad: int

    def precompute(self, steps: int, progress: ProgressCallback, *, autocast: bool = False) -> None:
        """Compute what is stored of the texts; the arguments are those of Stage A's."""
        if self.states is not None:
            wanted = [self.rows[index] for index in self.order.needed(steps)]
            needed = [row for row in wanted if self.states.contains([row])]
            self.states.precompute(needed, "reading texts to replay", progress)
            if not autocast:
                self.teacher.precompute(needed, self.method.temperatures, progress)

    def terms(
        self, step: int, device: torch.device, shard: StepShard = WHOLE_STEP
    ) -> Iterator[LossTerm]:
        """The weighted penalty at a step, or a shard's share in it.

        Args:
            step: of the optimizer.
            device: of the model.
            shard: of the step.
        """
        whole = self.order.step(step)
        chosen = [self.rows[index] for index in shard.of(whole)]
        all_tokens = sum(self.rows[index].words for index in whole)
        for group in groups_of(chosen):
            rows = [chosen[number] for number in group]
            share = self.order.share(whole) * (sum(row.words for row in rows) / all_tokens)
            yield self._term(rows, self.weight * share, device)

    def _term(self, rows: Rows, share: float, device: torch.device) -> LossTerm:
        """The part of texts that are read in one call."""
        batch = on_device(self.teacher.prompts.collate(rows, self.pad), device)

        def loss(predictions: Predictions) -> Tensor:
            """Of the texts."""
            compared = predictions.compare_with(TeacherPredictions(self.teacher, rows))
            penalty = self.method.penalty_of(compared)
            return torch.zeros((), device=device) if penalty is None else share * penalty

        positions, temperatures = read_positions(rows).to(device), self.method.temperatures
        seen = bool(rows[0].images)
        return LossTerm(ForwardCall(batch, positions, temperatures, pictures=seen), loss)


class WithAndWithoutDistractor(LazySequence[Mapping[str, Tensor]]):
    """Each retention text without a sample, then with a distractor.

    Args:
        retention: has the texts.
        kinds: of distractor.
    """

    def __init__(self, retention: CounterfactualRetention, kinds: Sequence[str]) -> None:
        self.retention = retention
        self.with_distractor = RetentionExamples(retention, kinds)

    def __len__(self) -> int:
        return 2 * len(self.with_distractor)

    def made(self, number: int) -> Mapping[str, Tensor]:
        """A text alone at an even index, and with a distractor at the next one."""
        number, second = divmod(number, 2)
        if second:
            return self.with_distractor[number]
        retention = self.retention
        return on_device(retention.collate([retention.rows[number]]), retention.model.device)


class BaseFinetuningRetention:
    """The retention part of the loss while the base is fine-tuned, as the trainer calls it.

    Args:
        model: being trained; its base is still the original.
        counterfactual: texts with distractors, and the methods; None for none.
        replay: texts without a sample; None for none.
    """

    def __init__(
        self,
        model: SafeModel,
        counterfactual: CounterfactualRetention | None,
        replay: Replay | None,
    ) -> None:
        self.model, self.counterfactual, self.replay = model, counterfactual, replay
        self.methods: Sequence[WeightedRegularizer] = (
            counterfactual.methods if counterfactual else ()
        )
        if counterfactual is not None:
            counterfactual.teacher = OriginalBaseTeacher(model, counterfactual.teacher)

    def begin(self, folder: Path, *, resumed: bool, progress: ProgressCallback) -> None:
        """Let each method see the start of the stage, or what was stored of it.

        Args:
            folder: of the files that methods store.
            resumed: whether training resumes at a later step.
            progress: the bar of long work.
        """
        if self.counterfactual is not None:
            self.counterfactual.begin(
                folder, resumed=resumed, progress=progress, examples=WithAndWithoutDistractor
            )

    def precompute(self, steps: int, progress: ProgressCallback, *, autocast: bool = False) -> None:
        """Compute what is stored of the original base, for these many steps."""
        for part in self._parts():
            with self.model.original_base():
                part.precompute(steps, progress, autocast=autocast)

    @property
    def kinds(self) -> Sequence[str]:
        """Of distractor in a step's texts; not empty where there are texts to replay."""
        return self.counterfactual.kinds if self.counterfactual is not None else ("replayed",)

    def terms(
        self, step: int, device: torch.device, shard: StepShard = WHOLE_STEP
    ) -> Iterator[LossTerm]:
        """The terms of counterfactual retention and of the replay."""
        for part in self._parts():
            yield from part.terms(step, device, shard)

    def parameter_loss(self, device: torch.device, shard: StepShard = WHOLE_STEP) -> Tensor:
        """The weighted sum of the penalties that depend on the parameters alone, or a shard's."""
        if self.counterfactual is None:
            return torch.zeros((), device=device)
        return self.counterfactual.parameter_loss(device, shard)

    def _parts(self) -> Iterator[CounterfactualRetention | Replay]:
        for part in (self.counterfactual, self.replay):
            if part is not None:
                yield part
