"""Batches for a training loop of one's own: texts, samples and the answers to be learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safe_framework.core.padding import Rows, by_position, lengthened, rearranged
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.types import Sample

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel

IGNORED = -100
"""The label of a position that no loss looks at."""


def prepare_multimodal_inputs(
    model: SafeModel,
    text: str | Sequence[str],
    images: Any = None,
    audio: Sample | Sequence[Sample | None] | None = None,
    answers: str | Sequence[str | None] | None = None,
    training_mode: bool = False,
    *,
    sampling_rate: int | None = None,
    **samples: Any,
) -> Any:
    """A batch of texts with samples of any modality, and in training the labels to learn.

    In training mode, each answer and the end-of-text token follow their text, rows are padded on
    the right, and ``labels`` holds the answers' ids where they stand and -100 everywhere else, at
    markers and padding too. Otherwise answers are not looked at, there are no labels, and rows
    are padded on the left, ready for ``generate``.

    Args:
        model: whose processor is used.
        text: one text or several.
        images: for the base's own processor, or for a modality of that name; None in a list is a
            text without one.
        audio: a sample for each text, or None, for the modality ``audio``.
        answers: what should follow each text; None in a list is a text without a target.
        training_mode: give labels.
        sampling_rate: of plain arrays given as samples, in hertz.
        **samples: the same as ``audio``, by the name of any other modality.

    Returns:
        Tensors for ``model(**batch)``, on the CPU.

    Raises:
        SafeError: answers are missing or empty, or a modality is not attached.
        SampleError: a sample cannot be used, or there are not as many as texts.
    """
    texts = [text] if isinstance(text, str) else list(text)
    given = _by_modality(model, {"audio": audio, "images": images, **samples})
    side = "right" if training_mode else "left"
    batch = model.processor(text=texts, sampling_rate=sampling_rate, padding_side=side, **given)
    if not training_mode:
        return batch
    targets = _targets(model.tokenizer, answers, len(texts))
    config: Any = model.base.config
    if config.is_encoder_decoder:  # whose labels are a text of their own
        batch["labels"] = _filled(targets, [0] * len(texts))
        return batch
    batch.update(with_answers(batch, targets, model.processor.padding))
    return batch


def with_answers(batch: Any, answers: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """What changes in a batch, padded on the right, when ids follow its texts; ``labels`` too.

    Args:
        batch: of texts.
        answers: the ids that follow each; none for a text without a target.
        pad: id that fills rows up.
    """
    ids: Tensor = batch["input_ids"]
    mask: Tensor = batch.get("attention_mask", torch.ones_like(ids))
    lengths, width = mask.sum(1).tolist(), ids.shape[1]
    rows = Rows(False, [range(length) for length in lengths], width)
    contents = [
        [*range(length), *range(width, width + len(answer))]
        for length, answer in zip(lengths, answers, strict=True)
    ]
    longer = lengthened(by_position({**batch, "attention_mask": mask}, ids.shape), answers)
    index = rows.index(contents, max(map(len, contents)))
    return {**rearranged(longer, index, pad), "labels": _filled(answers, lengths)}


def _filled(answers: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
    """Labels that hold each answer from its start on, (batch, length)."""
    ends = [start + len(answer) for start, answer in zip(starts, answers, strict=True)]
    labels = torch.full((len(answers), max(ends)), IGNORED)
    for row, (start, end, answer) in enumerate(zip(starts, ends, answers, strict=True)):
        labels[row, start:end] = torch.tensor(answer, dtype=labels.dtype)
    return labels


def _by_modality(model: SafeModel, samples: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in samples.items() if value is not None}
    if "images" in given and "images" not in model.modalities:
        images = given.pop("images")
        listed = list(images) if isinstance(images, (list, tuple)) else [images]
        shown = [image for image in listed if image is not None]
        if shown and not hasattr(model.tokenizer, "image_processor"):
            raise SafeError(
                "the base takes no images: the model has no processor for them",
                hint="attach a modality `images`, or give the base's own processor",
            )
        given |= {"images": shown} if shown else {}
    for name in given:
        if name not in model.modalities and name != "images":
            raise SampleError(
                f"there is no modality `{name}`",
                hint=f"attached modalities: {', '.join(model.modalities) or 'none'}",
            )
    return given


def _targets(
    tokenizer: Any, answers: str | Sequence[str | None] | None, count: int
) -> list[list[int]]:
    """Ids of each answer with the end-of-text token behind it."""
    listed = [answers] if isinstance(answers, str) else list(answers or ())
    if len(listed) != count:
        raise SafeError(
            f"training mode needs an answer for each of {count} texts, not {len(listed)}",
            hint="give `answers`, None for a text without a target",
        )
    return [
        [] if answer is None else answer_ids(tokenizer, answer, f"answers[{row}]")
        for row, answer in enumerate(listed)
    ]


def answer_ids(tokenizer: Any, answer: str, place: str) -> list[int]:
    """Ids of an answer with the end-of-text token behind it.

    Raises:
        SafeError: the answer has no tokens.
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    ids = inner(answer, add_special_tokens=False)["input_ids"]
    if not ids:
        raise SafeError(f"{place}: the answer {answer!r} has no tokens")
    return [*ids, inner.eos_token_id]
