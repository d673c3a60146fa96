"""Counterfactual retention: the base's own text beside a sample that has nothing to do with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from safe_framework.data.distractors import distractor
from safe_framework.data.frames import FrameStore
from safe_framework.data.unencoded import Row, UnencodedSamples
from safe_framework.errors import DataError
from safe_framework.model import SafeModel
from safe_framework.retention import RetentionRegularizer
from safe_framework.retention_store import Progress
from safe_framework.shapes import Sample
from safe_framework.training.batches import attention_mask, carry, pad_right
from safe_framework.training.order import generator, shuffled_slice
from safe_framework.training.retention_start import RetentionExamples, store_of
from safe_framework.training.teacher import Teacher

_NOISES = 24
Pools = Mapping[str, Mapping[str, Sequence[Row]]]
Stores = Mapping[str, FrameStore | UnencodedSamples]


@attrs.frozen(eq=False)
class Weighted:
    """A retention method and its weight in the loss.

    Attributes:
        options: as the recipe gives them: what the method computes at the start depends on them.
    """

    weight: float
    method: RetentionRegularizer
    options: Mapping[str, object] = attrs.field(factory=dict)


def distractor_pools(
    kinds: Collection[str],
    samples: Mapping[str, Sequence[Sample]],
    stores: Stores,
    seed: int,
    foreign: Mapping[str, Sequence[Sample]] | None = None,
) -> Pools:
    """Frames of irrelevant samples, by modality and kind.

    Args:
        kinds: of irrelevant sample, as in ``RetentionRegularizer.counterfactual``.
        samples: training samples by modality, from which they are made.
        stores: encode and keep them, or keep the samples of an encoder that trains.
        seed: decides noise.
        foreign: samples by modality that are not of the task, for kind ``"foreign"``.

    Raises:
        DataError: a method wants foreign samples, and there is none of some modality.
    """
    others = foreign or {}
    return {
        name: {
            kind: store.frames(_made(kind, samples[name], others.get(name, ()), seed))
            for kind in kinds
        }
        for name, store in stores.items()
    }


def _made(
    kind: str, samples: Sequence[Sample], foreign: Sequence[Sample], seed: int
) -> Sequence[Sample]:
    if kind == "foreign":
        if not foreign:
            raise DataError(
                '`counterfactual` names "foreign", but there is no foreign sample',
                hint='add `foreign = "foreign.jsonl"` to [data]: rows that name a file each',
            )
        return foreign
    if kind == "shuffled":
        return samples
    count = 1 if kind == "silent" else _NOISES
    return [distractor(kind, samples, generator(seed, number)) for number in range(count)]


class CounterfactualRetention:
    """The retention part of the loss at a step.

    Args:
        model: being trained.
        methods: with their weights.
        rows: token ids of the retention texts.
        pools: frames of irrelevant samples by modality and kind.
        kinds: of irrelevant sample that a step's texts carry in turn; a step without any runs
            no text, and methods without texts are all that it has.
        batch_size: texts in a step.
        seed: with the step, decides texts and samples.
        pad: id that fills rows up.
        marked: the same texts with the markers of every modality; None where none has any.
    """

    def __init__(
        self,
        model: SafeModel,
        methods: Sequence[Weighted],
        rows: Sequence[Sequence[int]],
        pools: Pools,
        *,
        kinds: Sequence[str],
        batch_size: int,
        seed: int,
        pad: int,
        marked: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.methods, self.rows, self.pools, self.kinds = methods, rows, pools, kinds
        self.marked = rows if marked is None else marked
        self.batch_size, self.seed, self.pad = batch_size, seed, pad
        self.model = model
        self.teacher = Teacher(model, rows, pad) if kinds else None
        self.dims = {name: model.modality(name).encoder.dim for name in pools}

    def begin(self, folder: Path, *, resumed: bool, progress: Progress) -> None:
        """Let each method see the start of training, or what was kept of it.

        Args:
            folder: of the files that methods keep.
            resumed: whether training goes on from a later step.
            progress: the bar of long work.
        """
        training = self.model.training
        self.model.eval()
        with torch.random.fork_rng():  # a run that finds the files draws what this one draws
            for number, entry in enumerate(self.methods):
                kinds = entry.method.counterfactual
                store = store_of(
                    folder / f"retention-{number}.safetensors",
                    self,
                    entry,
                    resumed=resumed,
                    progress=progress,
                )
                entry.method.begin(self.model, RetentionExamples(self, kinds), store)
        self.model.train(training)

    def loss(self, model: nn.Module, step: int, device: torch.device) -> Tensor:
        """The weighted sum of the methods' penalties at a step."""
        total = torch.zeros((), device=device)
        for weight, penalty in self._penalties(model, step, device):
            total = total if penalty is None else total + weight * penalty
        return total

    def _penalties(
        self, model: nn.Module, step: int, device: torch.device
    ) -> Iterator[tuple[float, Tensor | None]]:
        if self.teacher is not None:
            compared = self._compared(self.teacher, model, step, device)
            for entry in self.methods:
                yield entry.weight, entry.method.penalty(*compared)
        for entry in self.methods:
            yield entry.weight, entry.method.parameter_penalty()

    def _compared(
        self, teacher: Teacher, model: nn.Module, step: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """This step's logits of the model, the base's, and where there are words."""
        chosen = shuffled_slice(self.seed, step * self.batch_size, self.batch_size, len(self.rows))
        rows, marked = [self.rows[i] for i in chosen], [self.marked[i] for i in chosen]
        mask = attention_mask(rows).to(device)
        batch = {"input_ids": pad_right(marked, self.pad), "attention_mask": attention_mask(marked)}
        for name, pool in self.pools.items():
            batch.update(carry(name, self._irrelevant(pool, step), self.dims[name]))
        logits = model(**{key: value.to(device) for key, value in batch.items()}).logits
        return _at_words(logits, rows, marked), teacher.logits(chosen), mask.bool()

    def _irrelevant(self, pool: Mapping[str, Sequence[Row]], step: int) -> list[Row]:
        """One irrelevant sample for each text, the kinds in turn."""
        choose = generator(self.seed, step, 1)
        chosen = []
        for row in range(self.batch_size):
            frames = pool[self.kinds[(step * self.batch_size + row) % len(self.kinds)]]
            chosen.append(frames[int(torch.randint(len(frames), (), generator=choose))])
        return chosen


def _at_words(
    logits: Tensor, rows: Sequence[Sequence[int]], marked: Sequence[Sequence[int]]
) -> Tensor:
    """The logits at each text's own words, without those at its markers."""
    if logits.shape[1] == max(map(len, rows)):  # no markers, or none of a modality that is on
        return logits
    words = [set(row) for row in rows]
    places = [
        [place for place, word in enumerate(row) if word in own]
        for row, own in zip(marked, words, strict=True)
    ]
    index = pad_right(places, 0).to(logits.device).unsqueeze(-1)  # (batch, length, 1)
    return logits.gather(1, index.expand(-1, -1, logits.shape[2]))
