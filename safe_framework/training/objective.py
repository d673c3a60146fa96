"""The loss of a step in one call, which is what several devices wrap and average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.class_readout import Classes, mean_loss
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import logits_at
from safe_framework.training.alignment import Alignment
from safe_framework.training.batches import IGNORED
from safe_framework.training.compute.activation_cache import Caches, TextStates
from safe_framework.training.compute.calls import Call, LogitWords, Term, Words
from safe_framework.training.compute.forward import Reader
from safe_framework.training.distributed import StepShard, touch_parameters
from safe_framework.training.retention.counterfactual import CounterfactualRetention
from safe_framework.training.schedules import TrainingScales

# The task's loss: what a batch asks of a model, and what its words are worth.


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


class Objective(nn.Module):
    """Task, retention and alignment; the losses of a step's parts add up to the step's.

    Every trainable parameter takes part in every call, with a gradient of zero if in no other
    way, so no device waits for a gradient that another does not have.

    Args:
        model: about to be trained, in eval mode.
        retention: the second loss; None for none.
        alignment: the third; None for none.
        align_weight: of the third.
        caches: what is kept of the frozen base; None keeps nothing.
        states: of the task's texts, among it.
        scales: the factor on retention; None leaves it at 1.
        joins: whether calls of the model may be made as one.
    """

    def __init__(
        self,
        model: SafeModel,
        retention: CounterfactualRetention | None = None,
        alignment: Alignment | None = None,
        align_weight: float = 0.0,
        *,
        caches: Caches | None = None,
        states: TextStates | None = None,
        scales: TrainingScales | None = None,
        joins: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.retention = model, retention
        self.reader = Reader(model, caches, joins=joins)
        self.alignment = alignment if align_weight else None
        self.align_weight = align_weight
        self.caches, self.states = caches, states
        self.scales = scales or TrainingScales()
        self._ddp_params_and_buffers_to_ignore = _untrained(self)

    def forward(
        self,
        batch: Mapping[str, Tensor],
        answers: Sequence[str],
        totals: Tensor,
        step: int,
        part: StepShard,
    ) -> tuple[Tensor, Tensor]:
        """The loss of one part, and the task's and retention's share in it, (2,).

        Args:
            batch: the part's rows, with ``labels``.
            answers: of the rows, as they were written.
            totals: of the whole step, as ``step_totals`` adds them up.
            step: how many came before.
            part: which part it is.

        Raises:
            FloatingPointError: a loss is NaN or infinite.
        """
        model, device = self.model, batch["input_ids"].device
        retention = self.retention if self.scales.retention else None
        terms = [self._task(batch, totals[0])]
        if retention is not None:
            terms += retention.terms(step, device, part)
        words = self.reader.words([term.call for term in terms])
        task, *penalties = [term.loss(said) for term, said in zip(terms, words, strict=True)]
        check_finite(task, "task loss", step)
        kept = torch.zeros((), device=device)
        if retention is not None:
            kept = sum(penalties, retention.parameter_loss(device, part))
            kept = check_finite(self.scales.retention * kept, "retention loss", step)
        loss = task + kept
        if self.alignment is not None:
            present = dict(zip(model.modalities, totals[1:], strict=True))
            pulled = self.alignment.batch_loss(model, batch, answers, present)
            loss = loss + self.align_weight * pulled
        held = touch_parameters(loss, model.trainable_parameters().values())
        return held, torch.stack([task.detach(), kept.detach()])

    def _task(self, batch: Mapping[str, Tensor], count: Tensor) -> Term:
        answers, begun = Answers.of(batch), None
        if self.caches is not None:
            begun = self.caches.begun(self.states, batch["input_ids"], batch["attention_mask"])
        call = Call(answers.inputs, answers.places, answers.temperatures, begun)
        return Term(call, partial(answers.loss, count=count))


def step_totals(batches: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Tensor:
    """What the task's mean is over, and rows with a sample of each modality, (1 + modalities,)."""
    counts = [
        [_scored(batch), *(int(batch[f"{name}__present"].sum()) for name in names)]
        for batch in batches
    ]
    return torch.tensor(counts).sum(0)


def _scored(batch: Mapping[str, Any]) -> int:
    """Labelled tokens, and rows that are read at their modality's tokens."""
    read = int((batch["class_target"] != IGNORED).sum()) if "class_target" in batch else 0
    return int((batch["labels"][:, 1:] != IGNORED).sum()) + read


def _untrained(module: nn.Module) -> list[str]:
    """What training never changes: DistributedDataParallel is told to leave it alone."""
    trained = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    held = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in held if id(tensor) not in trained]
