"""Measure what a modality gives, what it leaves of the base, and against what."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs
import torch

from safe_framework.data.tasks import CAPTIONS, KIND
from safe_framework.errors import DataError
from safe_framework.evaluation.alignment import cross_modal, picture_alignment
from safe_framework.evaluation.answers import answer_room, eval_mode
from safe_framework.evaluation.base_drift import measure_drift
from safe_framework.evaluation.both_senses import both_senses
from safe_framework.evaluation.encoder_cache import cached_encoders
from safe_framework.evaluation.gain import (
    MEASURES,
    answer_all_conditions,
    by_dataset,
    by_kind,
    gain,
    without_captions,
)
from safe_framework.evaluation.limits import by_source, limit_of
from safe_framework.evaluation.metrics import Calibration, calibration, exact_match
from safe_framework.evaluation.overlap import trained_on
from safe_framework.evaluation.read_once import prompts_read_once
from safe_framework.evaluation.results import Answered, Evaluation, Wordings
from safe_framework.evaluation.retention import gate_zero, retention
from safe_framework.evaluation.seeing import (
    as_example,
    expected_about_pictures,
    picture_questions,
    seeing,
)
from safe_framework.evaluation.semantic import SentenceEncoder
from safe_framework.evaluation.wordings import ask_other_wordings, drawn_by, other_questions
from safe_framework.utils.progress import ProgressCallback, no_progress

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example, TextRow
    from safe_framework.interfaces.samples import Sample

_GATE_ZERO_EXAMPLES = 32
_NO_BANK = "no bank of `question` in [data] has any for these rows"

NO_CHATS: Mapping[str, str] = MappingProxyType({})
"""Questions are asked in no other chat."""


@torch.no_grad()
def evaluate(
    model: SafeModel,
    *,
    modality: str,
    train: Sequence[Example],
    test: Sequence[Example],
    texts: Sequence[str | TextRow],
    foreign: Sequence[Sample] = (),
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    bootstrap: int = 1000,
    seed: int = 0,
    semantic: str | None = None,
    by: str | None = None,
    wordings: int = 0,
    chats: Mapping[str, str] = NO_CHATS,
    progress: ProgressCallback = no_progress,
) -> Evaluation:
    """Measure gain against the base, shuffled samples, chance and a probe; and retention.

    The modality's gate is taken as 1; the model is left as it was.

    Args:
        model: with ``modality`` attached.
        modality: to measure.
        train: what it was trained on; the probe is fitted on it, chance is taken from it.
        test: never trained on.
        texts: of the base's own domain, never trained on, for retention. Those with a picture and
            an answer are asked too.
        foreign: samples that are not of the task; may be none.
        max_new_tokens: limit of an answer's length; None for as much as each expected one needs.
        batch_size: examples at a time.
        bootstrap: how often every 95 % interval resamples.
        seed: of the intervals, the shuffling, the probe's folds and the irrelevant samples.
        semantic: sentence encoder to judge answers by; see ``SentenceEncoder``.
        by: the field that says what kind of question a row is; ``kind`` where rows have that.
        wordings: of each kind of question of the rows' bank, so many are asked in held-out forms,
            and half as many in each of ``chats``; 0 for none.
        chats: the text around ``{question}`` of other chats than that of ``test``, by what is
            different in them.
        progress: called with a label, how many are done and of how many.

    Raises:
        DataError: there is no example or no text, an example lacks the modality, or a row has no
            picture and the base answers nothing without one.
        SafeError: the logits hold NaN, or the sentence encoder cannot be loaded.
    """
    _check(modality, train, test, texts)
    check_pictures(model, test)
    judge = SentenceEncoder(semantic) if semantic else None
    drawing: dict[str, Any] = {"resamples": bootstrap, "seed": seed}
    others = [one.example for one in other_questions(test, wordings, drawn_by(seed))]
    most = answer_room(model, [*test, *others, *expected_about_pictures(texts)], max_new_tokens)
    asking = _Asking(
        model, modality, by or KIND, drawing, progress, batch_size,
        {"max_new_tokens": most, "progress": progress},
    )  # fmt: skip
    with eval_mode(model), cached_encoders(model), prompts_read_once(model):
        answers = asking.in_all_conditions(train, test)
        asked = asking.in_other_words(test, answers, wordings, chats)
        measured = asking.beside(test, texts, foreign)
    if wordings and not (asked and asked.kinds):
        measured["unmeasured"]["wordings"] = _NO_BANK
    found, seen = _of_answers(answers, _labels(train), judge, drawing), measured["seeing"]
    return Evaluation(
        modality=modality,
        **measured,
        **found,
        **_counts(model, train, most),
        by=asking.field if found["kinds"] or (seen and seen.kinds) else "",
        wordings=asked,
        limit=limit_of(answers, **drawing),
        sources=by_source(answers, train, **drawing),
        trained_on=trained_on(modality, train, test),
        **drawing,
    )


@attrs.frozen
class _Asking:
    """Which model is measured, and how.

    Attributes:
        model: in evaluation mode.
        modality: whose gate is taken as 1.
        field: says what kind of question a row is.
        drawing: resamples of every interval, and the seed.
        progress: of the work.
        batch_size: examples at a time.
        generating: how answers are generated.
    """

    model: SafeModel
    modality: str
    field: str
    drawing: Mapping[str, Any]
    progress: ProgressCallback
    batch_size: int
    generating: Mapping[str, Any]

    def in_all_conditions(
        self, train: Sequence[Example], test: Sequence[Example]
    ) -> tuple[Answered, ...]:
        """The answers to the task."""
        return answer_all_conditions(
            self.model, self.modality, train, test,
            by=self.field, batch_size=self.batch_size, seed=self.drawing["seed"],
            **self.generating,
        )  # fmt: skip

    def in_other_words(
        self,
        test: Sequence[Example],
        answers: Sequence[Answered],
        count: int,
        chats: Mapping[str, str],
    ) -> Wordings | None:
        """The answers in forms and chats that training never saw."""
        return ask_other_wordings(
            self.model, self.modality, test, _scores(answers), count=count, chats=chats,
            batch_size=self.batch_size, **self.generating, **self.drawing,
        )  # fmt: skip

    def beside(
        self,
        test: Sequence[Example],
        texts: Sequence[str | TextRow],
        foreign: Sequence[Sample],
    ) -> dict[str, Any]:
        """What is measured beside the answers to the task: fields of an ``Evaluation``."""
        model, modality, drawing = self.model, self.modality, self.drawing
        told: dict[str, Any] = {"progress": self.progress, **drawing}
        pictured = [*test, *(as_example(row, row.samples) for row in picture_questions(texts))]
        beside_pictures = picture_alignment(model, modality, pictured, **told)
        none = isinstance(beside_pictures, str)  # why there is none
        return {
            "retention": retention(model, modality, texts, test, foreign, **told),
            "gate_zero": gate_zero(
                model, modality, _beside_samples(modality, test, texts), **self.generating
            ),
            "seeing": seeing(
                model, modality, texts, test, foreign,
                by=self.field, batch_size=self.batch_size, **self.generating, **drawing,
            ),
            "alignment": cross_modal(model, modality, test, **told),
            "picture_alignment": None if none else beside_pictures,
            "base_changed": measure_drift(model, texts, **told),
            "unmeasured": {"picture_alignment": beside_pictures} if none else {},
        }  # fmt: skip


def _of_answers(
    answers: Sequence[Answered],
    labels: Sequence[str],
    judge: SentenceEncoder | None,
    drawing: Mapping[str, Any],
) -> dict[str, Any]:
    """The answers to the task, and what follows from them: fields of an ``Evaluation``."""
    return {
        "answers": answers,
        "gain": gain(without_captions(answers), labels, judge=judge, **drawing),
        "datasets": by_dataset(answers, **drawing),
        "calibration": _calibration(answers, drawing),
        "kinds": by_kind(answers, **drawing),
        "both_senses": both_senses(answers, **drawing),
    }


def _beside_samples(
    modality: str, test: Sequence[Example], texts: Sequence[str | TextRow]
) -> list[Example]:
    """What is asked at gate 0: test rows, and picture questions beside the samples of test rows."""
    asked = picture_questions(texts)[:_GATE_ZERO_EXAMPLES]
    samples = [test[number % len(test)].samples[modality] for number in range(len(asked))]
    pictured = [
        as_example(row, {modality: sample}) for row, sample in zip(asked, samples, strict=True)
    ]
    return [*test[:_GATE_ZERO_EXAMPLES], *pictured]


def _scores(answers: Sequence[Answered]) -> list[float]:
    """How right each answer is, by the measure of its task."""
    found = []
    for row in answers:
        _, measure = MEASURES.get(row.task, ("", exact_match))
        found.append(float(measure([row.answer], [row.expected])[0]))
    return found


def _labels(train: Sequence[Example]) -> list[str]:
    """What chance draws from: captions are no labels, unless there is nothing else."""
    labels = [example.answer for example in train if example.task != CAPTIONS]
    return labels or [example.answer for example in train]


def _counts(model: SafeModel, train: Sequence[Example], max_new_tokens: int) -> dict[str, Any]:
    return {
        "train_examples": len(train),
        "max_new_tokens": max_new_tokens,
        "trainable_parameters": sum(p.numel() for p in model.trainable_parameters().values()),
        "base_parameters": sum(p.numel() for p in model.base.parameters()),
    }


def _calibration(answers: Sequence[Answered], drawing: Mapping[str, Any]) -> Calibration | None:
    """Of the answers that were generated; a label that was chosen has no probability."""
    generated = [row for row in answers if row.confidence is not None and row.task != CAPTIONS]
    sure = [row.confidence or 0.0 for row in generated]
    return calibration(sure, [row.right for row in generated], **drawing) if generated else None


def check_pictures(model: SafeModel, test: Sequence[Example]) -> None:
    """Refuse rows that the base cannot answer, since it answers nothing without a picture.

    Raises:
        DataError: a row has no picture, and the base's ``generate`` demands one.
    """
    generate: Any = model.base.generate
    wanted = inspect.signature(generate).parameters.get("pixel_values")
    if wanted is None or wanted.default is not inspect.Parameter.empty:
        return
    for example in test:
        if not example.images:
            raise DataError(
                f"{example.place}: the row has no picture, and `{type(model.base).__name__}` "
                "answers nothing without one",
                hint="give every row of `test` a picture, or choose a base that answers text alone",
            )


def _check(
    modality: str, train: Sequence[Example], test: Sequence[Example], texts: Sequence[Any]
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
