"""The loss of a step in one call, which is what several devices wrap and average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.model import SafeModel
from safe_framework.training.align import Alignment
from safe_framework.training.batches import IGNORED
from safe_framework.training.caches import Caches
from safe_framework.training.calls import Call, Term
from safe_framework.training.dials import Dials
from safe_framework.training.holding import hold
from safe_framework.training.losses import Answers, check_finite
from safe_framework.training.parts import Part
from safe_framework.training.reader import Reader
from safe_framework.training.retention import CounterfactualRetention
from safe_framework.training.states import TextStates


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
        dials: the factor on retention; None leaves it at 1.
        joins: whether calls of the model may be made as one.
    """

    accepts_loss_kwargs = True  # read by Trainer: the parts of a step add up, so divide none

    def __init__(
        self,
        model: SafeModel,
        retention: CounterfactualRetention | None = None,
        alignment: Alignment | None = None,
        align_weight: float = 0.0,
        *,
        caches: Caches | None = None,
        states: TextStates | None = None,
        dials: Dials | None = None,
        joins: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.retention = model, retention
        self.reader = Reader(model, caches, joins=joins)
        self.alignment = alignment if align_weight else None
        self.align_weight = align_weight
        self.caches, self.states = caches, states
        self.dials = dials or Dials()
        self._ddp_params_and_buffers_to_ignore = _untrained(self)

    def forward(
        self,
        batch: Mapping[str, Tensor],
        answers: Sequence[str],
        totals: Tensor,
        step: int,
        part: Part,
    ) -> tuple[Tensor, Tensor]:
        """The loss of one part, and the task's and retention's share in it, (2,).

        Args:
            batch: the part's rows, with ``labels``.
            answers: of the rows, as they were written.
            totals: of the whole step, as ``totals_of`` adds them up.
            step: how many came before.
            part: which part it is.

        Raises:
            FloatingPointError: a loss is NaN or infinite.
        """
        model, device = self.model, batch["input_ids"].device
        retention = self.retention if self.dials.retention else None
        terms = [self._task(batch, totals[0])]
        if retention is not None:
            terms += retention.terms(step, device, part)
        words = self.reader.words([term.call for term in terms])
        task, *penalties = [term.loss(said) for term, said in zip(terms, words, strict=True)]
        check_finite(task, "task loss", step)
        kept = torch.zeros((), device=device)
        if retention is not None:
            kept = sum(penalties, retention.parameter_loss(device, part))
            kept = check_finite(self.dials.retention * kept, "retention loss", step)
        loss = task + kept
        if self.alignment is not None:
            present = dict(zip(model.modalities, totals[1:], strict=True))
            pulled = self.alignment.batch_loss(model, batch, answers, present)
            loss = loss + self.align_weight * pulled
        held = hold(loss, model.trainable_parameters().values())
        return held, torch.stack([task.detach(), kept.detach()])

    def _task(self, batch: Mapping[str, Tensor], count: Tensor) -> Term:
        answers, begun = Answers.of(batch), None
        if self.caches is not None:
            begun = self.caches.begun(self.states, batch["input_ids"], batch["attention_mask"])
        call = Call(answers.inputs, answers.places, answers.temperatures, begun)
        return Term(call, partial(answers.loss, count=count))


def totals_of(batches: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Tensor:
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
