"""Measure what a new sense gives, what it leaves of the base, and against what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from safe_framework.errors import DataError
from safe_framework.evaluation.alignment import cross_modal
from safe_framework.evaluation.answers import Progress, evaluating, silent
from safe_framework.evaluation.calibration import calibration
from safe_framework.evaluation.collect import collect
from safe_framework.evaluation.gain import gain
from safe_framework.evaluation.results import Evaluation
from safe_framework.evaluation.retention import gate_zero, retention
from safe_framework.evaluation.semantic import SentenceEncoder

if TYPE_CHECKING:
    from safe_framework.data.examples import Example
    from safe_framework.model import SafeModel
    from safe_framework.shapes import Sample

_GATE_ZERO_EXAMPLES = 32


@torch.no_grad()
def evaluate(
    model: SafeModel,
    *,
    modality: str,
    train: Sequence[Example],
    test: Sequence[Example],
    texts: Sequence[str],
    foreign: Sequence[Sample] = (),
    max_new_tokens: int = 8,
    batch_size: int = 32,
    bootstrap: int = 1000,
    seed: int = 0,
    semantic: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure gain against the base, shuffled samples, chance and a probe; and retention.

    The modality's gate is taken as 1, whatever it is set to; the model is left as it was.

    Args:
        model: with ``modality`` attached, trained or not.
        modality: the sense to measure.
        train: what it was trained on; the probe is fitted on it, chance is taken from it.
        test: never trained on.
        texts: of the base's own domain, never trained on, for retention.
        foreign: samples that are not of the task, never trained on; may be none.
        max_new_tokens: limit of an answer's length.
        batch_size: examples at a time.
        bootstrap: how often every 95 % interval resamples.
        seed: of the intervals, the shuffling, the probe's folds and the irrelevant samples.
        semantic: sentence encoder to judge answers by; see ``SentenceEncoder``.
        progress: called with a label, how many are done and of how many.

    Raises:
        CheckpointError: the sentence encoder cannot be loaded.
        DataError: there is no example or no text, or an example lacks the modality.
        SafeError: the logits hold NaN.
    """
    _check(modality, train, test, texts)
    tell = progress or silent
    judge = SentenceEncoder(semantic) if semantic else None
    drawing: dict[str, Any] = {"resamples": bootstrap, "seed": seed}
    with evaluating(model):
        answers = collect(
            model, modality, train, test, max_new_tokens=max_new_tokens,
            batch_size=batch_size, seed=seed, progress=tell,
        )  # fmt: skip
        kept = retention(model, modality, texts, test, foreign, progress=tell, **drawing)
        shut = gate_zero(
            model, modality, test[:_GATE_ZERO_EXAMPLES],
            max_new_tokens=max_new_tokens, progress=tell,
        )  # fmt: skip
        likeness = cross_modal(
            model, modality, test, batch_size=batch_size, progress=tell, **drawing
        )
    return Evaluation(
        modality=modality,
        gain=gain(answers, [example.answer for example in train], judge=judge, **drawing),
        retention=kept,
        gate_zero=shut,
        trainable_parameters=sum(p.numel() for p in model.trainable_parameters().values()),
        base_parameters=sum(p.numel() for p in model.base.parameters()),
        train_examples=len(train),
        max_new_tokens=max_new_tokens,
        answers=answers,
        calibration=calibration(
            [row.confidence or 0.0 for row in answers], [row.right for row in answers], **drawing
        ),
        alignment=likeness,
        **drawing,
    )


def _check(
    modality: str, train: Sequence[Example], test: Sequence[Example], texts: Sequence[str]
) -> None:
    for name, given in {"train": train, "test": test, "texts": texts}.items():
        if not given:
            raise DataError(
                f"`{name}` is empty: there is nothing to evaluate with",
                hint=f"give at least one of `{name}`",
            )
    for example in (*train, *test):
        if example.samples.get(modality) is None:
            raise DataError(
                f"{example.place}: the example has no `{modality}`",
                hint=f"give it one, or leave it out when `{modality}` is evaluated",
            )
