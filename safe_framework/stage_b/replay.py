"""What defends the base in Stage B: its own texts, without a sample and beside irrelevant ones.

While the base was frozen, a text without a sample could not change. Now it can, so such texts are
replayed and distilled towards the base as it was. Methods of retention go on as in Stage A, and
what they look at before the first step holds each text both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import attrs
import torch
from torch import Tensor, nn

from safe_framework.model import SafeModel
from safe_framework.retention import RetentionRegularizer
from safe_framework.retention_store import Progress
from safe_framework.stage_b.change import original
from safe_framework.training.batches import attention_mask, pad_right
from safe_framework.training.order import shuffled_slice
from safe_framework.training.retention import CounterfactualRetention, Weighted
from safe_framework.training.retention_start import RetentionExamples, store_of
from safe_framework.training.teacher import Teacher

_APART = 7919
"""Added to the seed, so that a step replays other texts than it puts beside samples."""


class FrozenTeacher:
    """A teacher that answers as the base did before it was changed.

    Args:
        model: whose base changes.
        teacher: of its retention texts.
    """

    def __init__(self, model: SafeModel, teacher: Teacher) -> None:
        self.model, self.teacher = model, teacher

    def logits(self, chosen: Sequence[int]) -> Tensor:
        """The original base's logits on the chosen texts, (batch, length, vocabulary)."""
        with original(self.model):
            return self.teacher.logits(chosen)


@attrs.frozen(eq=False)
class Replay:
    """Texts without a sample, distilled towards the original base.

    Attributes:
        rows: token ids of the texts.
        teacher: knows what the original base says of them.
        method: whose penalty is taken.
        weight: of the penalty.
        batch_size: texts in a step.
        seed: with the step, decides the texts.
        pad: id that fills rows up.
    """

    rows: Sequence[Sequence[int]]
    teacher: FrozenTeacher
    method: RetentionRegularizer
    weight: float
    batch_size: int
    seed: int
    pad: int

    def loss(self, model: nn.Module, step: int, device: torch.device) -> Tensor | None:
        """The weighted penalty at a step."""
        seed, start = self.seed + _APART, step * self.batch_size
        chosen = shuffled_slice(seed, start, self.batch_size, len(self.rows))
        rows = [self.rows[i] for i in chosen]
        mask = attention_mask(rows).to(device)
        ids = pad_right(rows, self.pad).to(device)
        logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
        penalty = self.method.penalty(logits, self.teacher.logits(chosen), mask.bool())
        return None if penalty is None else self.weight * penalty


class BothWays(Sequence[Mapping[str, Tensor]]):
    """Each retention text without a sample, then beside an irrelevant one.

    Args:
        retention: has the texts.
        kinds: of irrelevant sample.
    """

    def __init__(self, retention: CounterfactualRetention, kinds: Sequence[str]) -> None:
        self.retention = retention
        self.beside = RetentionExamples(retention, kinds)

    def __len__(self) -> int:
        return 2 * len(self.beside)

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Tensor]: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Mapping[str, Tensor]]: ...

    def __getitem__(
        self, place: int | slice
    ) -> Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        number, beside = divmod(range(len(self))[place], 2)
        if beside:
            return self.beside[number]
        ids = torch.tensor([list(self.retention.rows[number])], device=self.retention.model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class StageBRetention:
    """The part of Stage B's loss that keeps the base, as the trainer asks for it.

    Args:
        model: being trained; its base is still the original.
        counterfactual: texts beside irrelevant samples, and the methods; None for none.
        replay: texts without a sample; None for none.
    """

    def __init__(
        self,
        model: SafeModel,
        counterfactual: CounterfactualRetention | None,
        replay: Replay | None,
    ) -> None:
        self.model, self.counterfactual, self.replay = model, counterfactual, replay
        self.methods: Sequence[Weighted] = counterfactual.methods if counterfactual else ()
        if counterfactual is not None and counterfactual.teacher is not None:
            frozen = FrozenTeacher(model, counterfactual.teacher)
            counterfactual.teacher = frozen  # type: ignore[assignment]  # asked for logits alone

    def begin(self, folder: Path, *, resumed: bool, progress: Progress) -> None:
        """Let each method see the start of the stage, or what was kept of it.

        Args:
            folder: of the files that methods keep.
            resumed: whether training goes on from a later step.
            progress: the bar of long work.
        """
        training = self.model.training
        self.model.eval()
        with torch.random.fork_rng():  # a run that finds the files draws what this one draws
            for number, entry in enumerate(self.methods):
                assert self.counterfactual is not None
                examples = BothWays(self.counterfactual, entry.method.counterfactual)
                place = folder / f"retention-{number}.safetensors"
                store = store_of(
                    place, self.counterfactual, entry, resumed=resumed, progress=progress
                )
                entry.method.begin(self.model, examples, store)
        self.model.train(training)

    def loss(self, model: nn.Module, step: int, device: torch.device) -> Tensor:
        """The weighted sum of all penalties at a step."""
        parts = list(self._parts(model, step, device))
        return torch.stack(parts).sum() if parts else torch.zeros((), device=device)

    def _parts(self, model: nn.Module, step: int, device: torch.device) -> Iterator[Tensor]:
        if self.counterfactual is not None:
            yield self.counterfactual.loss(model, step, device)
        if self.replay is not None:
            replayed = self.replay.loss(model, step, device)
            if replayed is not None:
                yield replayed
