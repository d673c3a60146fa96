"""What a base that sees still sees: its answers about pictures with the sense absent and beside it.

The questions are held-out texts with a picture and an answer. They are scored by VQA accuracy, and
retention is the ratio of two such accuracies, the model's and the base's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from safe_framework.data.examples import Example, TextRow
from safe_framework.data.tasks import KIND
from safe_framework.evaluation.answers import (
    answer,
    batched_apart,
    example_inputs,
    new_tokens,
)
from safe_framework.evaluation.gain import kind_of
from safe_framework.evaluation.metrics import bootstrap, bootstrap_ratio
from safe_framework.evaluation.results import (
    PictureQuestion,
    Seeing,
    SeeingScore,
    SeeingScores,
)
from safe_framework.evaluation.retention import DistractorDraw, distractor_pools
from safe_framework.evaluation.vqa import vqa_accuracy
from safe_framework.interfaces.samples import Sample
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.tensors import bitwise_equal

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel


def picture_questions(texts: Sequence[str | TextRow]) -> list[TextRow]:
    """The rows that have a picture and an answer."""
    return [row for row in texts if isinstance(row, TextRow) and row.images and row.people]


@torch.no_grad()
def seeing(
    model: SafeModel,
    modality: str,
    texts: Sequence[str | TextRow],
    examples: Sequence[Example],
    foreign: Sequence[Sample] = (),
    *,
    by: str = KIND,
    max_new_tokens: int = 8,
    batch_size: int = 32,
    resamples: int = 1000,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> Seeing | None:
    """Ask all picture questions in every way; None where there are none.

    Args:
        model: in eval mode.
        modality: whose gate is opened.
        texts: of which those with pictures and an answer are asked.
        examples: of the test data; irrelevant samples are made from theirs.
        foreign: more irrelevant samples, which are not of the task; may be none.
        by: the field that says what kind of question a row is.
        max_new_tokens: limit of an answer's length.
        batch_size: questions at a time.
        resamples: of the intervals.
        seed: of the irrelevant samples and the intervals.
        progress: called after every batch.
    """
    rows = picture_questions(texts)
    if not rows:
        return None
    options: Any = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    alone = [as_example(row, {}) for row in rows]
    same_logits, same_tokens, base, absent = _with_sense_absent(model, alone, progress, **options)
    options |= {"gate": {modality: 1.0}, "progress": progress}
    pools = distractor_pools(modality, examples, foreign)
    draw = DistractorDraw(modality, pools, seed)
    beside: dict[str, list[str]] = {}
    for kind in pools:
        given = [as_example(*pair) for pair in zip(rows, draw(kind, len(rows)), strict=True)]
        beside[kind] = answer(model, given, label=f"pictures beside {kind} samples", **options)
    having = [row for row in rows if modality in row.samples]
    own = [as_example(row, row.samples) for row in having]
    heard = answer(model, own, label="pictures beside their own samples", **options)
    relevant = dict(zip(map(id, having), heard, strict=True))
    questions = tuple(
        PictureQuestion(
            place=row.place,
            question=str(row.fields.get("question", row.text)),
            expected=row.people,
            kind=kind_of(row.fields, by),
            base=base[number],
            absent=absent[number],
            irrelevant={kind: answers[number] for kind, answers in beside.items()},
            relevant=relevant.get(id(row)),
            images=row.images,
            sample=row.samples.get(modality),
            file=row.files.get(modality),
        )
        for number, row in enumerate(rows)
    )
    return summed_up(questions, same_logits, same_tokens, resamples=resamples, seed=seed)


def summed_up(
    questions: Sequence[PictureQuestion],
    same_logits: bool,
    same_tokens: bool,
    *,
    resamples: int,
    seed: int,
) -> Seeing:
    """The scores of questions that were asked in every way, together and by kind.

    Args:
        questions: with their answers; at least one.
        same_logits: whether, without a sample, the logits of all answers were the base's.
        same_tokens: whether all answers were.
        resamples: of the intervals.
        seed: of the intervals.
    """
    kinds = dict.fromkeys(one.kind for one in questions if one.kind)
    groups = {kind: [one for one in questions if one.kind == kind] for kind in kinds}
    return Seeing(
        same_logits,
        same_tokens,
        _scores(questions, resamples, seed),
        {kind: _scores(group, resamples, seed) for kind, group in groups.items()},
        tuple(questions),
    )


def as_example(row: TextRow, samples: Mapping[str, Sample]) -> Example:
    """A picture question beside samples, to be asked as test examples are."""
    return Example(row.text, row.people[0], samples, row.place, images=row.images)


def expected_about_pictures(texts: Sequence[str | TextRow]) -> list[Example]:
    """The picture questions among texts, with what is right."""
    return [as_example(row, {}) for row in picture_questions(texts)]


def _with_sense_absent(
    model: SafeModel,
    questions: Sequence[Example],
    progress: ProgressCallback,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> tuple[bool, bool, list[str], list[str]]:
    """Whether logits and tokens are the base's, and both answers to each question."""
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    logits, tokens = True, True
    before, after = list[str](), list[str]()
    for rows in batched_apart(questions, batch_size):
        plain = example_inputs(model, rows)
        with model.original_base():
            generate: Any = model.base.generate
            base = generate(**plain, **options)
        given = model.generate(**plain, **options)
        logits &= all(map(bitwise_equal, given.logits, base.logits))
        tokens &= bitwise_equal(given.sequences, base.sequences)
        before += _decoded(model, base.sequences, plain)
        after += _decoded(model, given.sequences, plain)
        progress("pictures alone", len(after), len(questions))
    return logits, tokens, before, after


def _decoded(model: SafeModel, tokens: torch.Tensor, batch: Mapping[str, Any]) -> list[str]:
    own = new_tokens(model, tokens, batch)
    texts: list[str] = model.tokenizer.batch_decode(own, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _scores(questions: Sequence[PictureQuestion], resamples: int, seed: int) -> SeeingScores:
    drawing: Any = {"resamples": resamples, "seed": seed}
    expected, base = [one.expected for one in questions], [one.base for one in questions]
    score = partial(seeing_score, expected, base, resamples=resamples, seed=seed)
    kinds = {kind: [one.irrelevant[kind] for one in questions] for kind in questions[0].irrelevant}
    having = [one for one in questions if one.relevant is not None]
    relevant = [one.relevant or "" for one in having]
    return SeeingScores(
        base=bootstrap(vqa_accuracy(base, expected), **drawing),
        absent=score([[one.absent for one in questions]]),
        irrelevant={kind: score([found]) for kind, found in kinds.items()},
        overall=score(list(kinds.values())),
        relevant=seeing_score(
            [one.expected for one in having], [one.base for one in having], [relevant], **drawing
        )
        if having
        else None,
    )


def seeing_score(
    expected: Sequence[Sequence[str]],
    base: Sequence[str],
    ways: Sequence[Sequence[str]],
    *,
    resamples: int,
    seed: int,
) -> SeeingScore:
    """The score of answers given in one way or several, of which a question's mean counts.

    Args:
        expected: what people answered to each question.
        base: the base's answer to each.
        ways: in each way, the answer to each question.
        resamples: of the intervals.
        seed: of the intervals.
    """
    reference = vqa_accuracy(base, expected)
    right = np.mean([vqa_accuracy(answers, expected) for answers in ways], axis=0)
    same = np.mean(
        [[float(a == b) for a, b in zip(answers, base, strict=True)] for answers in ways], axis=0
    )
    return SeeingScore(
        bootstrap(right, resamples=resamples, seed=seed),
        bootstrap(right - reference, resamples=resamples, seed=seed),
        bootstrap(same, resamples=resamples, seed=seed),
        bootstrap_ratio(right, reference, resamples=resamples, seed=seed),
    )
