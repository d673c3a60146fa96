"""From examples to padded batches, with labels on the answer alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.config.schema import Attend
from safe_framework.core.attend import answering
from safe_framework.core.class_readout import CLASS_COLUMNS, ClassTarget, class_target
from safe_framework.core.markers.text import NOTHING_SAID, Said
from safe_framework.core.padding import pad_right
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow, Rows, as_row, groups_of
from safe_framework.data.aligned_words import aligned_words
from safe_framework.data.examples import Example
from safe_framework.data.frame_cache import (
    CachedSamples,
    RawSample,
    prepare_inputs,
    presence,
    stack,
)
from safe_framework.data.windows import in_slots
from safe_framework.errors import DataError, SafeError
from safe_framework.interfaces.samples import each_of, sample_counts, together
from safe_framework.interfaces.types import FRAMES, FRAMES_MASK, FROM, IGNORED, PRESENT, Frames


@attrs.frozen(eq=False)
class TokenizedExample:
    """An example ready to be batched.

    Attributes:
        prompt: its token ids and pictures; plain ids are a prompt without pictures.
        answer: token ids of the answer and what ends it.
        text: the answer as it was written.
        frames: one row of frames by modality, or the sample itself if its encoder trains; several
            of them where it has several samples.
        dataset: the name of its dataset.
        classes: what is read at the modality's tokens instead of the answer.
        align: the words that alignment draws its samples to, one for all or one for each, where
            they are not the answer.
        label: what is balanced: the row's own answer, whatever it is asked.
        drawn: the same row with the question of its reading of some number; None where it has one.
        variants: what stands in place of ``frames`` at other readings.
    """

    prompt: PromptRow = attrs.field(converter=as_row)
    answer: Sequence[int]
    text: str
    frames: Mapping[str, CachedSamples]
    dataset: str = ""
    classes: ClassTarget | None = None
    align: str | tuple[str, ...] | None = None
    label: str = attrs.field(default=attrs.Factory(lambda self: self.text, takes_self=True))
    drawn: Callable[[int], TokenizedExample] | None = None
    variants: Sequence[Mapping[str, CachedSamples]] = ()

    def varied(self, turn: int) -> TokenizedExample:
        """The same row with the variant of its samples that reading number ``turn`` meets."""
        number = turn % (len(self.variants) + 1)
        if not number:
            return self
        return attrs.evolve(self, frames=self.variants[number - 1])

    @property
    def aligned(self) -> tuple[str, ...]:
        """The words that alignment draws its samples to, as ``aligned_words`` says."""
        return aligned_words(self.text, self.align, sample_counts(self.frames))

    @property
    def target_ids(self) -> Sequence[int]:
        """The answer's tokens that are learned: none where a class is read instead."""
        return () if self.classes else self.answer

    @property
    def row(self) -> PromptRow:
        """The prompt with what is learned behind it."""
        return self.prompt.followed_by(self.target_ids)

    @property
    def labels(self) -> list[int]:
        """What is learned at each position where the base predicts."""
        return [*[IGNORED] * len(self.prompt), *self.target_ids]

    @property
    def answer_start(self) -> int:
        """The position that predicts the answer: the last of the prompt, or where a class is read.

        From here on, a modality acts that attends to answers alone.
        """
        return min(self.classes.positions) if self.classes else len(self.prompt) - 1


def tokenize(
    prompts: PromptEncoder,
    example: Example,
    frames: Mapping[str, CachedSamples],
    variants: Sequence[Mapping[str, CachedSamples]] = (),
    said: Said = NOTHING_SAID,
) -> TokenizedExample:
    """The row of an example's prompt, with the markers of its samples, and its answer.

    Args:
        prompts: makes the row.
        example: of the task.
        frames: of its samples, by modality.
        variants: what stands in place of ``frames`` at other readings.
        said: in its samples, where they are transcribed; learned from whatever the gate is.

    Raises:
        DataError: the answer has no tokens, a picture does not fit, or a class would be read at
            tokens at which an encoder-decoder predicts nothing.
    """
    try:
        counts = sample_counts(frames)
        prompt = prompts.prompt(example.prompt, example.images, counts, said, always=True)
    except SafeError as error:
        raise DataError(f"{example.place}: {error.message}", hint=error.hint) from error
    answer = prompts.answer(example.answer, example.prompt)
    if not answer:
        raise DataError(f"{example.place}: the answer {example.answer!r} has no tokens")
    classes = class_target(prompts.tokenizer, example, prompt.ids, prompts.markers)
    if classes is not None and prompt.target:
        raise DataError(
            f"{example.place}: an encoder-decoder predicts nothing at the modality's tokens",
            hint='read the class as an answer: `read_at = "answer"`',
        )
    return TokenizedExample(
        prompt,
        answer,
        example.answer,
        frames,
        example.dataset,
        classes,
        example.align,
        example.label,
        None
        if example.questions is None
        else partial(_drawn, prompts, example, frames, variants, said),
        variants,
    )


def _drawn(
    prompts: PromptEncoder,
    example: Example,
    frames: Mapping[str, CachedSamples],
    variants: Sequence[Mapping[str, CachedSamples]],
    said: Said,
    turn: int,
) -> TokenizedExample:
    """The example with the question of its reading number ``turn``."""
    assert example.questions is not None
    asked = example.ask(example.questions.drawn(turn))
    return tokenize(prompts, asked, frames, variants, said)


def modality_columns(
    name: str, rows: Sequence[CachedSamples | None], dim: int
) -> dict[str, Tensor]:
    """A batch's columns of modality ``name``: finished frames of width ``dim``.

    Where the encoder trains, what it has prepared of the samples instead.
    """
    present, held = presence(rows)
    if held and isinstance(held[0], RawSample):
        samples = [
            together([one.sample for one in each_of(row) if isinstance(one, RawSample)])
            for row in rows
        ]
        return prepare_inputs(name, held[0].encoder, samples)
    frames = stack([one for one in held if isinstance(one, Frames)], dim)
    return {
        f"{name}__{PRESENT}": present,
        f"{name}__{FRAMES}": in_slots(frames.values, present),
        f"{name}__{FRAMES_MASK}": in_slots(frames.mask, present),
    }


class AnswerCollator:
    """Pads tokenized examples.

    Args:
        dims: width of the frames by modality.
        pad: id that fills rows up; it is masked, so any id will do.
        prompts: makes the tensors of pictures; None where no row has any.
        pixels_needed: whether a call on these rows runs the image tower.
        attends: where in the text each modality acts.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        pad: int,
        prompts: PromptEncoder | None = None,
        pixels_needed: Callable[[Rows], bool] = lambda rows: True,
        attends: Mapping[str, Attend] | None = None,
    ) -> None:
        self.answering = answering(attends or {})
        self.dims, self.pad, self.pixels_needed = dict(dims), pad, pixels_needed
        self.prompts = prompts or PromptEncoder(None)

    def __call__(self, examples: Sequence[TokenizedExample]) -> dict[str, Any]:
        """``input_ids``, ``attention_mask``, ``labels``, the modalities, and ``answers``.

        The last are what alignment alone reads: of each row the words that its samples are drawn
        to. The examples are of one call: either all have pictures, or none has.
        """
        rows = [example.row for example in examples]
        batch: dict[str, Any] = {
            **self.prompts.collate(rows, self.pad, pixels=self.pixels_needed(rows)),
            "labels": pad_right([example.labels for example in examples], IGNORED),
            "answers": [e.aligned for e in examples],
            **class_columns(examples, max(map(len, rows))),
        }
        for name, dim in self.dims.items():
            batch.update(modality_columns(name, [e.frames.get(name) for e in examples], dim))
            if name in self.answering:
                batch[f"{name}__{FROM}"] = torch.tensor([e.answer_start for e in examples])
        return batch

    def calls(self, examples: Sequence[TokenizedExample]) -> dict[str, list[dict[str, Any]]]:
        """A step's ``calls``, one for the rows without pictures and one for those with, if any.

        Each is a batch, with its ``rows``.
        """
        rows = [example.row for example in examples]
        return {
            "calls": [
                {**self([examples[i] for i in group]), "rows": [rows[i] for i in group]}
                for group in groups_of(rows)
            ]
        }


def class_columns(examples: Sequence[TokenizedExample], width: int) -> dict[str, Tensor]:
    """A batch's columns of the classes that are read at tokens; empty where none is."""
    wanted = [example.classes for example in examples]
    if not any(wanted):
        return {}
    most = max(len(one.ids) for one in wanted if one)
    ids = torch.full((len(wanted), most), IGNORED)
    target = torch.full((len(wanted),), IGNORED)
    positions = torch.zeros(len(wanted), width, dtype=torch.bool)
    for row, one in enumerate(wanted):
        if one is not None:
            ids[row, : len(one.ids)] = torch.tensor(one.ids)
            target[row] = one.target
            positions[row, list(one.positions)] = True
    return dict(zip(CLASS_COLUMNS, (ids, target, positions), strict=True))
