"""Alignment: tokens learn to point where the words of their answer lie.

Each token of a sample is drawn, by cosine, to the base's embedding of the sample's answer (of one
of several samples, of the words that the row gives for it; without any it takes no part) and
away from those of all other training answers: the contrastive objective of CLIP (Radford et al.
2021, arXiv:2103.00020) towards frozen text embeddings. As a stage of its own, before fusion, it
costs seconds, since the base does not run; while fusion is trained it can stay in the loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor, nn

from safe_framework.config.schema import Recipe, TrainingSpec
from safe_framework.core.modality import Modality
from safe_framework.core.model import SafeModel
from safe_framework.data.aligned_words import words_for
from safe_framework.data.frame_cache import CachedSample, modality_inputs, stack
from safe_framework.data.tasks import unique
from safe_framework.errors import DataError
from safe_framework.evaluation.alignment import answer_embeddings
from safe_framework.interfaces.samples import each_of
from safe_framework.interfaces.types import Frames, Tokens
from safe_framework.training.batches import TokenizedExample, modality_columns
from safe_framework.utils.progress import WorkProgress

LABEL = "aligning the projector"
_TEMPERATURE = 0.07
_SMOOTHING = 0.1
_PULL = 2.0
_RISING = 0.1  # share of the steps in which the rate rises
_WEIGHT_DECAY = 0.05
_BATCH = 256
_MOST_WINDOWS = 512  # with words, and without, whose frames are held at once
_CHUNK = 32  # samples at a time that an encoder which trains is shown before the first step


class Alignment:
    """The alignment loss towards a task's answers.

    Args:
        model: whose base embeds the answers.
        answers: of all training examples; repeats are counted.
    """

    def __init__(self, model: SafeModel, answers: Sequence[str]) -> None:
        self.candidates = unique(answers)
        self.position = {answer: i for i, answer in enumerate(self.candidates)}
        self.targets = answer_embeddings(model, self.candidates)  # (candidates, hidden)
        counts = Counter(answers)
        rarity = torch.tensor([1 / counts[answer] for answer in self.candidates])
        self.weights = (rarity * len(answers) / len(self.candidates)).to(self.targets.device)

    def indices(self, answers: Sequence[str]) -> Tensor:
        """The index of each answer among the candidates, (answers,), on the CPU."""
        return torch.tensor([self.position[a] for a in answers])

    def loss(self, tokens: Tokens, wanted: Tensor) -> Tensor:
        """Contrast and pull of every token, each distinct answer counting the same.

        Args:
            tokens: (batch, tokens, hidden).
            wanted: the index of each sample's answer among the candidates, (batch,).
        """
        wanted = self._to(tokens.values.device, wanted)
        unit = nn.functional.normalize(tokens.values.float(), dim=-1)
        count = unit.shape[1]
        contrast = nn.functional.cross_entropy(
            (unit @ self.targets.T / _TEMPERATURE).flatten(0, 1),
            wanted.repeat_interleave(count),
            label_smoothing=_SMOOTHING,
            reduction="none",
        )
        pull = 1 - (unit * self.targets[wanted].unsqueeze(1)).sum(-1)  # (batch, tokens)
        per_sample = (contrast.reshape(-1, count) + _PULL * pull).mean(1)
        return (per_sample * self.weights[wanted]).mean()

    def _to(self, device: torch.device, wanted: Tensor) -> Tensor:
        """Move to the tokens' device, which may not be the base's, and move ``wanted`` too."""
        self.targets, self.weights = self.targets.to(device), self.weights.to(device)
        return wanted.to(device)

    def batch_loss(
        self,
        model: SafeModel,
        batch: Mapping[str, Tensor],
        answers: Sequence[Sequence[str]],
        aligned: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The loss of every modality in a batch, on the samples that have words.

        Args:
            model: whose projectors are aligned.
            batch: with frames, or samples of encoders that train.
            answers: of its rows, as ``aligned_words`` gives them.
            aligned: samples of each modality that have words, over which the means are taken,
                where the batch is a shard of a step; its own if None.
        """
        total = self.targets.new_zeros(())
        for name in model.modalities:
            present = batch[f"{name}__present"]
            words = words_of_samples(answers, present)
            at = [number for number, word in enumerate(words) if word is not None]
            if at:
                chosen = tuple(places[at] for places in present.nonzero(as_tuple=True))
                modality, given = model.modality(name), modality_inputs(name, batch)
                frames = modality.encode({key: value[chosen] for key, value in given.items()})
                wanted = self.indices([word for word in words if word is not None])
                share = 1 if aligned is None else len(at) / aligned[name]
                frames, own = modality.split(frames)
                tokens = modality.projector(frames)
                total = total + share * self.loss(tokens, wanted.to(present.device)[own])
        return total


def words_of_samples(answers: Sequence[Sequence[str]], present: Tensor) -> list[str | None]:
    """The words of each sample in a batch, row after row; None where it has none.

    Args:
        answers: of its rows, as ``aligned_words`` gives them.
        present: which samples there are, (batch,) or (batch, slots).
    """
    counts = present.reshape(len(present), -1).sum(1).tolist()
    found: list[str | None] = []
    for aligned, count in zip(answers, counts, strict=True):
        found += words_for(aligned, count) or [None] * count
    return found


@attrs.frozen(eq=False)
class AlignmentStage:
    """Alignment before fusion: what it trains, and on what.

    Attributes:
        projector: gives the tokens.
        frames: gives the frames of chosen rows, on the projector's device.
        rates: peak rate of each module that is trained: the projector, and its encoder if that
            trains.
        batch: rows of a step.
        split: into what the projector is given at once, and the row of each; None for rows as they
            are.
    """

    projector: nn.Module
    frames: Callable[[Tensor], Frames]
    rates: Mapping[nn.Module, float]
    batch: int = _BATCH
    split: Callable[[Frames], tuple[Frames, Tensor]] | None = None


def align(
    stage: AlignmentStage,
    alignment: Alignment,
    answers: Sequence[str],
    spec: TrainingSpec,
    progress: WorkProgress,
) -> None:
    """Train a projector, without the base, for ``spec.align_steps`` steps.

    Args:
        stage: what is trained.
        alignment: the loss.
        answers: the answer of each row.
        spec: steps.
        progress: the bar.
    """
    if not spec.align_steps:
        return
    wanted = alignment.indices(answers)
    groups = [
        {"params": [p for p in module.parameters() if p.requires_grad], "lr": rate}
        for module, rate in stage.rates.items()
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY)
    rising = min(max(_RISING, 1.5 / spec.align_steps), 0.9)  # torch divides by what a rise takes
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, list(stage.rates.values()), total_steps=spec.align_steps, pct_start=rising
    )
    for module in stage.rates:
        module.train()
    for step in range(spec.align_steps):
        rows = torch.randperm(len(answers))[: stage.batch]
        frames, words = stage.frames(rows), wanted[rows]
        if stage.split is not None:
            frames, own = stage.split(frames)
            words = words[own.cpu()]
        loss = alignment.loss(stage.projector(frames), words)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        optimizer.step()
        schedule.step()
        progress(LABEL, step + 1, spec.align_steps, f"loss {loss.item():.3f}")
    optimizer.zero_grad()  # a loop of one's own would add its first step's gradients to the last


def prepare_projectors(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[TokenizedExample],
    alignment: Alignment,
    progress: WorkProgress,
) -> None:
    """Show each projector its training frames, and align it with the answers if asked to.

    Frames of variants are training frames too. A sample that stands in many rows, as the clips of
    pairs do, counts once for each word that it is to mean.

    Where the encoder trains, the projector is shown what it gives before the first step, and
    alignment trains both.
    """
    torch.manual_seed(recipe.training.seed)
    for name in model.modalities:
        modality = model.modality(name)
        having = [example for example in examples if name in example.frames]
        if not having:
            raise DataError(
                f"no training row has a sample of modality `{name}`",
                hint=f"add a field `{name}` to the rows that have one",
            )
        rows, words = _window_rows(modality, *samples_and_words(having, name))
        first = _first_frames(modality, rows, model.device)
        modality.projector.fit(first)
        chosen = [number for number, word in enumerate(words) if word is not None]
        if len(chosen) < len(rows):
            rows, first = (
                [rows[number] for number in chosen],
                first.rows(torch.tensor(chosen, dtype=torch.long)),
            )
        if rows:
            stage = _stage_of(modality, rows, first, model.device, recipe.training)
            answers = [word for word in words if word is not None]
            align(stage, alignment, answers, recipe.training, progress)


def samples_and_words(
    examples: Sequence[TokenizedExample], name: str
) -> tuple[list[CachedSample], list[str | None]]:
    """The samples of a modality, of all rows and variants, and the word for each, no pair twice."""
    found: dict[tuple[int, str | None], CachedSample] = {}
    for example in examples:
        for frames in (example.frames, *example.variants):
            own: tuple[CachedSample, ...] = each_of(frames[name])
            words: Sequence[str | None] = words_for(example.aligned, len(own)) or [None] * len(own)
            for one, word in zip(own, words, strict=True):
                found.setdefault((id(one), word), one)
    return list(found.values()), [word for _, word in found]


def _window_rows(
    modality: Modality, rows: list[CachedSample], words: list[str | None]
) -> tuple[list[CachedSample], list[str | None]]:
    """A row for each window of finished frames, and its words; of very many, evenly many."""
    windows = modality.encoder.windows
    if windows is None:
        return rows, words
    found, own, width = list[CachedSample](), list[str | None](), windows.window.frames
    for row, word in zip(rows, words, strict=True):
        parts = [row]
        if isinstance(row, Frames):
            starts = range(0, row.mask.shape[1], width)
            cut = [(row.values[:, at : at + width], row.mask[:, at : at + width]) for at in starts]
            parts = [Frames(values, mask) for values, mask in cut if mask.any()]
        found += parts
        own += [word] * len(parts)
    named = [number for number, word in enumerate(own) if word is not None]
    others = [number for number, word in enumerate(own) if word is None]
    kept = sorted(
        each[place * len(each) // min(len(each), _MOST_WINDOWS)]
        for each in (named, others)
        for place in range(min(len(each), _MOST_WINDOWS))
    )
    return [found[number] for number in kept], [own[number] for number in kept]


def frames_of(modality: Modality, rows: Sequence[CachedSample], device: torch.device) -> Frames:
    """Frames of some rows as one batch; those of an encoder that trains are computed now."""
    batch = modality_columns(modality.name, rows, modality.encoder.dim)
    inputs = modality_inputs(modality.name, batch)
    return modality.encode({key: value.to(device) for key, value in inputs.items()})


@torch.no_grad()
def _first_frames(modality: Modality, rows: Sequence[CachedSample], device: torch.device) -> Frames:
    """Frames of all rows, as they are before the first step."""
    if not modality.encoder_trains:
        return frames_of(modality, rows, device)
    modality.encoder.eval()
    single: list[Frames] = []
    for start in range(0, len(rows), _CHUNK):
        some = frames_of(modality, rows[start : start + _CHUNK], device)
        single += [some.rows(torch.tensor([row])) for row in range(len(some.mask))]
    stacked = stack(single, modality.encoder.dim)
    return Frames(stacked.values.to(device), stacked.mask.to(device))


def _stage_of(
    modality: Modality,
    rows: Sequence[CachedSample],
    first: Frames,
    device: torch.device,
    spec: TrainingSpec,
) -> AlignmentStage:
    """What alignment trains, and how it gets frames."""
    rates: dict[nn.Module, float] = {modality.projector: spec.align_learning_rate}
    if not modality.encoder_trains:
        return AlignmentStage(modality.projector, first.rows, rates)
    rate = spec.encoder_learning_rate
    rates[modality.encoder] = spec.align_learning_rate if rate is None else rate

    def read(chosen: torch.Tensor) -> Frames:
        """The frames of chosen rows."""
        return frames_of(modality, [rows[row] for row in chosen.tolist()], device)

    return AlignmentStage(modality.projector, read, rates, spec.batch_size, modality.split)
