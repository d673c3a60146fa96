"""The loss of a step: task, retention and alignment, in one module that several devices wrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.adapter import LoadedKeys
from safe_framework.core.class_readout import ClassReadout, mean_loss
from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import logits_at
from safe_framework.core.prompt_rows import Rows
from safe_framework.interfaces.types import IGNORED
from safe_framework.training.alignment import Alignment, words_of_samples
from safe_framework.training.compute.activation_cache import ActivationCaches, ActivationStore
from safe_framework.training.compute.calls import (
    ForwardCall,
    LogitPredictions,
    LossTerm,
    Predictions,
)
from safe_framework.training.compute.forward import ForwardPlanner, PlainForward
from safe_framework.training.compute.prompt_cache import PromptCache
from safe_framework.training.distributed import StepShard, touch_parameters
from safe_framework.training.retention.counterfactual import CounterfactualRetention
from safe_framework.training.schedules import TrainingScales


@attrs.frozen(eq=False)
class Answers:
    """The task's loss on a batch: the inputs of a call, and the answers that are wanted.

    Attributes:
        inputs: of the call.
        positions: True where a prediction is scored, (batch, length).
        targets: the next token of each position, ``IGNORED`` where none is scored.
        classes: what is read at a modality's tokens; None for nothing.
    """

    inputs: Mapping[str, Tensor]
    positions: Tensor
    targets: Tensor
    classes: ClassReadout | None

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Answers:
        """Take them out of ``input_ids``, ``attention_mask``, ``labels``, modalities, classes."""
        inputs = dict(batch)
        classes = ClassReadout.taken(inputs)
        targets = nn.functional.pad(inputs.pop("labels")[:, 1:], (0, 1), value=IGNORED)
        positions = targets != IGNORED  # position t predicts token t + 1
        if classes is not None:
            positions = positions | classes.positions
        return cls(inputs, positions, targets, classes)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Of the softmax that the loss takes of its predictions; class logits are needed whole."""
        return (1.0,) if self.classes is None else ()

    def loss(self, predictions: Predictions, count: Tensor | None = None) -> Tensor:
        """Mean next-token cross-entropy over the predictions.

        Args:
            predictions: the predictions at the positions.
            count: of labelled positions (and rows that are read at their tokens), over which the
                mean is taken, where the batch is a shard of a step; its own if None.
        """
        if self.classes is not None:
            return mean_loss(predictions.logits, self.targets, self.classes, count)
        wanted = self.targets[self.positions]
        return predictions.cross_entropy(wanted) / (len(wanted) if count is None else count)


def answer_loss(
    model: nn.Module, base: nn.Module, batch: Mapping[str, Any], count: Tensor | None = None
) -> Tensor:
    """The loss of one batch by a call of its own, from the logits at its positions.

    Args:
        model: a SafeModel, or what is called like one.
        base: its base, whose output embeddings are applied at those positions alone.
        batch: as ``Answers.of`` wants it.
        count: as in ``Answers.loss``.
    """
    answers = Answers.of(batch)
    logits = logits_at(model, base, answers.inputs, answers.positions)
    return answers.loss(LogitPredictions(logits), count)


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


class Objective(nn.Module):
    """Task, retention and alignment; the losses of a step's shards add up to the step's.

    Every trainable parameter takes part in every call, with a gradient of zero if in no other
    way, so no device waits for a gradient that another does not have.

    Args:
        model: about to be trained, in eval mode.
        retention: the second loss; None for none.
        alignment: the third; None for none.
        align_weight: of the third.
        caches: what is kept of the frozen base; None keeps nothing.
        states: of the task's texts, among it.
        prompt_cache: of the task's prompts; None runs them at each step.
        scales: the factor on retention; None leaves it at 1.
        merges: whether calls of the model may be made as one.
        speedups: whether a step may leave out what no loss depends on; each call runs whole and by
            itself otherwise.
    """

    accepts_loss_kwargs = True  # the shards of a step add up: the Trainer is not to divide them

    def __init__(
        self,
        model: SafeModel,
        retention: CounterfactualRetention | None = None,
        alignment: Alignment | None = None,
        align_weight: float = 0.0,
        *,
        caches: ActivationCaches | None = None,
        states: ActivationStore | None = None,
        prompt_cache: PromptCache | None = None,
        scales: TrainingScales | None = None,
        merges: bool = True,
        speedups: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.retention = model, retention
        self.planner: ForwardPlanner | PlainForward = PlainForward(model)
        if speedups and not decodes_separately(model.base):
            self.planner = ForwardPlanner(model, caches, merges=merges)
        self.alignment = alignment if align_weight else None
        self.align_weight = align_weight
        self.caches, self.states, self.prompt_cache = caches, states, prompt_cache
        self.scales = scales or TrainingScales()
        self._ddp_params_and_buffers_to_ignore = _frozen_names(self)

    def forward(
        self,
        calls: Sequence[Mapping[str, Any]],
        totals: Tensor,
        step: int,
        shard: StepShard,
    ) -> tuple[Tensor, Tensor]:
        """The loss of one shard, and the task's and retention's share in it, (2,).

        Args:
            calls: the shard's rows as ``AnswerCollator.calls`` puts them together: of each call
                a batch with ``labels``, the ``answers`` that alignment reads, and the ``rows``.
            totals: of the whole step, as ``step_totals`` adds them up.
            step: how many came before.
            shard: which shard it is.

        Raises:
            FloatingPointError: a loss is NaN or infinite.
        """
        model, device = self.model, calls[0]["input_ids"].device
        retention = self.retention if self.scales.retention else None
        terms = [self._task(call, totals[0]) for call in calls]
        if retention is not None:
            terms += retention.terms(step, device, shard)
        predictions = self.planner.predictions([term.call for term in terms])
        losses = [term.loss(predicted) for term, predicted in zip(terms, predictions, strict=True)]
        first, *others = losses[: len(calls)]
        task, penalties = check_finite(sum(others, first), "task loss", step), losses[len(calls) :]
        kept = torch.zeros((), device=device)
        if retention is not None:
            kept = sum(penalties, retention.parameter_loss(device, shard))
            kept = check_finite(self.scales.retention * kept, "retention loss", step)
        loss = task + kept
        if self.alignment is not None:
            aligned = dict(zip(model.modalities, totals[1:], strict=True))
            for call in calls:
                alignment = self.alignment.batch_loss(model, call, call["answers"], aligned)
                loss = loss + self.align_weight * alignment
        loss = touch_parameters(loss, model.trainable_parameters().values())
        return loss, torch.stack([task.detach(), kept.detach()])

    def _task(self, batch: Mapping[str, Any], count: Tensor) -> LossTerm:
        rows: Rows = batch["rows"]
        tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        answers = Answers.of(tensors)
        call = ForwardCall(
            answers.inputs,
            answers.positions,
            answers.temperatures,
            pictures=bool(rows[0].images),
        )
        if self.prompt_cache is not None:
            call = self.prompt_cache.behind_prompts(call, rows)
        if self.caches is not None and call.past is None:
            states = self.caches.prefix_states(self.states, rows)
            call = attrs.evolve(call, prefix_states=states)
        return LossTerm(call, partial(answers.loss, count=count))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> LoadedKeys:
        """Take the adapter's tensors, named as in a checkpoint or as in this module.

        The Trainer loads a checkpoint by this, and DeepSpeed its own.
        """
        given = dict(state_dict)
        if given.keys() != self.model.adapter_tensors().keys():
            given = {key.removeprefix("model."): tensor for key, tensor in given.items()}
        return self.model.load_state_dict(given, strict)


def step_totals(batches: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Tensor:
    """What the task's mean is over, and alignment's of each modality, (1 + modalities,).

    Args:
        batches: of a step, each as ``AnswerCollator.calls`` gives it.
        names: of the modalities.
    """
    counts = [
        [_scored(call), *(_aligned(call, name) for name in names)]
        for batch in batches
        for call in batch["calls"]
    ]
    return torch.tensor(counts).sum(0)


def _aligned(batch: Mapping[str, Any], name: str) -> int:
    words = words_of_samples(batch["answers"], batch[f"{name}__present"])
    return sum(word is not None for word in words)


def _scored(batch: Mapping[str, Any]) -> int:
    """Labelled tokens, and rows that are read at their modality's tokens."""
    read = int((batch["class_target"] != IGNORED).sum()) if "class_target" in batch else 0
    return int((batch["labels"][:, 1:] != IGNORED).sum()) + read


def _frozen_names(module: nn.Module) -> list[str]:
    """Names of what training never changes, which DistributedDataParallel ignores."""
    trained = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    named = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in named if id(tensor) not in trained]
