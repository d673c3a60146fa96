"""From examples to padded batches, with labels on the answer alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.class_readout import CLASS_COLUMNS, ClassTarget, class_target
from safe_framework.core.markers.text import MarkerText
from safe_framework.core.padding import attention_mask, pad_right
from safe_framework.core.processor import with_start_token
from safe_framework.data.examples import Example
from safe_framework.data.frame_cache import CachedSample, RawSample, prepare_inputs, stack
from safe_framework.errors import DataError
from safe_framework.interfaces.types import IGNORED, Frames


@attrs.frozen(eq=False)
class TokenizedExample:
    """An example ready to be batched.

    Attributes:
        prompt: token ids of the prompt.
        answer: token ids of the answer and the end-of-text token.
        text: the answer as it was written.
        frames: one row of frames by modality, or the sample itself if its encoder trains.
        dataset: the name of its dataset.
        classes: what is read at the modality's tokens instead of the answer.
    """

    prompt: Sequence[int]
    answer: Sequence[int]
    text: str
    frames: Mapping[str, CachedSample]
    dataset: str = ""
    classes: ClassTarget | None = None

    @property
    def target_ids(self) -> Sequence[int]:
        """The answer's tokens that are learned: none where a class is read instead."""
        return () if self.classes else self.answer


def tokenize(
    tokenizer: Any,
    example: Example,
    frames: Mapping[str, CachedSample],
    markers: MarkerText | None = None,
) -> TokenizedExample:
    """Token ids of an example's prompt, with the markers of its samples, and answer.

    Raises:
        DataError: the answer has no tokens.
    """
    prompt = token_ids(tokenizer, example.prompt, frames, markers)
    answer = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    if not answer:
        raise DataError(f"{example.place}: the answer {example.answer!r} has no tokens")
    ended = [*answer, tokenizer.eos_token_id]
    classes = class_target(tokenizer, example, prompt, markers)
    return TokenizedExample(prompt, ended, example.answer, frames, example.dataset, classes)


def token_ids(
    tokenizer: Any, text: str, present: Collection[str], markers: MarkerText | None
) -> list[int]:
    """Token ids of a text, with the markers of the modalities that it has a sample of."""
    if markers is None:
        ids: list[int] = tokenizer(with_start_token(tokenizer, text))["input_ids"]
        return ids
    text = markers.leave_out_absent(text, present)
    plain = with_start_token(tokenizer, markers.strip_markers(text))
    return markers.insert_markers(text, tokenizer(plain)["input_ids"], present)


def modality_columns(name: str, rows: Sequence[CachedSample | None], dim: int) -> dict[str, Tensor]:
    """A batch's columns of modality ``name``: finished frames of width ``dim``.

    Where the encoder trains, what it has prepared of the samples instead.
    """
    raw = [row for row in rows if isinstance(row, RawSample)]
    if raw:
        samples = [row.sample if isinstance(row, RawSample) else None for row in rows]
        return prepare_inputs(name, raw[0].encoder, samples)
    frames = [row if isinstance(row, Frames) else None for row in rows]
    stacked = stack(frames, dim)
    return {
        f"{name}__present": torch.tensor([one is not None for one in frames]),
        f"{name}__frames": stacked.values,
        f"{name}__frames_mask": stacked.mask,
    }


class AnswerCollator:
    """Pads tokenized examples.

    Args:
        dims: width of the frames by modality.
        pad: id that fills rows up; it is masked, so any id will do.
    """

    def __init__(self, dims: Mapping[str, int], pad: int) -> None:
        self.dims, self.pad = dict(dims), pad

    def __call__(self, examples: Sequence[TokenizedExample]) -> dict[str, Any]:
        """``input_ids``, ``attention_mask``, ``labels``, the modalities, and ``answers``."""
        rows = [[*e.prompt, *e.target_ids] for e in examples]
        labels = [[*[IGNORED] * len(e.prompt), *e.target_ids] for e in examples]
        batch: dict[str, Any] = {
            "input_ids": pad_right(rows, self.pad),
            "attention_mask": attention_mask(rows),
            "labels": pad_right(labels, IGNORED),
            "answers": [e.text for e in examples],
            **class_columns(examples, max(map(len, rows))),
        }
        for name, dim in self.dims.items():
            batch.update(modality_columns(name, [e.frames.get(name) for e in examples], dim))
        return batch


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
