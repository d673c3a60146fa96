"""Ask every test question in all conditions, and score the answers.

The conditions: with the modality, without it, with another example's sample, and by a linear probe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from safe_framework.data.fields import SOURCE
from safe_framework.data.tasks import CAPTIONS, KIND
from safe_framework.evaluation.answers import (
    answer,
    answer_with_confidence,
    answer_without,
    with_shuffled_samples,
)
from safe_framework.evaluation.both_senses import with_blank_pictures, with_shuffled_pictures
from safe_framework.evaluation.metrics import bootstrap, exact_match, normalise, token_f1
from safe_framework.evaluation.probe import Features, pool, probe
from safe_framework.evaluation.results import OTHER, Answered, Gain, GroupGain
from safe_framework.evaluation.semantic import SentenceEncoder, similarity
from safe_framework.interfaces.samples import each_of
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.sequences import batched

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example

_Score = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]

MEASURES: dict[str, tuple[str, _Score]] = {
    CAPTIONS: ("words in common (F1)", partial(token_f1, both_empty=0.0))
}
"""Name and function of the measure of each task that is not scored by exact match."""


def answer_all_conditions(
    model: SafeModel,
    modality: str,
    train: Sequence[Example],
    test: Sequence[Example],
    *,
    by: str = KIND,
    max_new_tokens: int = 8,
    batch_size: int = 32,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> tuple[Answered, ...]:
    """Every test example with all the answers to it, the modality's gate taken as 1.

    Args:
        model: in eval mode.
        modality: whose gate it is.
        train: what the probe is fitted on.
        test: examples, each with a sample.
        by: the field that says what kind of question a row is.
        max_new_tokens: limit of an answer's length.
        batch_size: examples at a time.
        seed: of the shuffling and the probe's folds.
        progress: called after every batch.
    """
    options: Any = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    options |= {"gate": {modality: 1.0}, "progress": progress}
    ask: Callable[..., list[str]] = partial(answer, model, **options)
    confident = answer_with_confidence(model, test, label="answers with the modality", **options)
    astray = ask(
        with_shuffled_samples(test, modality, seed=seed), label="answers with shuffled samples"
    )
    with model.original_base():
        base = answer_without(ask, test, modality, label="answers of the base")
    columns = (
        confident,
        astray,
        base,
        _probe_answers(model, modality, train, test, batch_size, seed, progress),
        *_beside_other_pictures(ask, test, seed),
    )
    template = model.processor.template
    return tuple(
        Answered(
            place=example.place,
            question=question_of_prompt(example.prompt, template),
            expected=example.judged(example.answer),
            answer=example.judged(given),
            shuffled=example.judged(misled),
            base=example.judged(alone),
            probe=probed,
            confidence=sure,
            task=example.task,
            dataset=example.dataset,
            kind=kind_of(example.fields, by),
            source=kind_of(example.fields, SOURCE),
            blank_picture=None if unseen is None else example.judged(unseen),
            other_picture=None if deceived is None else example.judged(deceived),
            sample=example.samples[modality],
            file=example.files.get(modality),
            images=example.images,
        )
        for example, (given, sure), misled, alone, probed, unseen, deceived in zip(
            test, *columns, strict=True
        )
    )


def kind_of(fields: Mapping[str, Any], by: str) -> str:
    """What a row's field says, as text; empty where it has none."""
    value = fields.get(by)
    return "" if value is None else str(value)


def _beside_other_pictures(
    ask: Callable[..., list[str]], test: Sequence[Example], seed: int
) -> tuple[list[str | None], list[str | None]]:
    """The answers beside blank pictures and beside another's; None where there is no picture."""
    pictured = [example for example in test if example.images]
    if not pictured:
        return [None] * len(test), [None] * len(test)
    blank = iter(ask(with_blank_pictures(pictured), label="answers beside blank pictures"))
    other = iter(
        ask(with_shuffled_pictures(pictured, seed=seed), label="answers beside other pictures")
    )
    return (
        [next(blank) if example.images else None for example in test],
        [next(other) if example.images else None for example in test],
    )


def question_of_prompt(prompt: str, template: str) -> str:
    """What replaced ``{question}``; the whole prompt if it was made otherwise.

    >>> question_of_prompt("Q: what is it? A:", "Q: {question} A:")
    'what is it?'
    """
    before, _, after = template.partition("{question}")
    if len(prompt) > len(before + after) and prompt.startswith(before) and prompt.endswith(after):
        return prompt.removeprefix(before).removesuffix(after)
    return prompt


def _probe_answers(
    model: SafeModel,
    modality: str,
    train: Sequence[Example],
    test: Sequence[Example],
    batch_size: int,
    seed: int,
    progress: ProgressCallback,
) -> tuple[str, ...]:
    train = [example for example in train if example.task != CAPTIONS]
    asked = [row for row, example in enumerate(test) if example.task != CAPTIONS]
    named = [""] * len(test)
    if not train or not asked:  # a probe names classes, and a caption is none
        return tuple(named)
    named_rows = [test[row] for row in asked]
    features = _features(model, modality, [*train, *named_rows], batch_size, progress)
    for row, name in zip(asked, _probe_tasks(features, train, named_rows, seed), strict=True):
        named[row] = name
    return tuple(named)


def _probe_tasks(
    features: Features, train: Sequence[Example], test: Sequence[Example], seed: int
) -> list[str]:
    """What a probe of each task says of the test rows, whose features follow the training rows'."""
    named = [""] * len(test)
    of_train, of_test = tasks([(asks(e), normalise(e.judged(e.answer))) for e in train], test)
    for task in sorted(set(of_test)):
        known = [row for row, its in enumerate(of_train) if its == task]
        asked = [row for row, its in enumerate(of_test) if its == task]
        labels = [normalise(train[row].judged(train[row].answer)) for row in known]
        rows = [len(train) + row for row in asked]
        found = probe(features[known], labels, features[rows], seed=seed)
        for row, name in zip(asked, found, strict=True):
            named[row] = name
    return named


def _features(
    model: SafeModel,
    modality: str,
    examples: Sequence[Example],
    batch_size: int,
    progress: ProgressCallback,
) -> Features:
    """Pooled frames of each example; files of which several are asked are encoded once.

    Those of several samples stand one after another; an example that has fewer has zeros there.
    """
    keys = [example.files.get(modality) or row for row, example in enumerate(examples)]
    first = dict(zip(reversed(keys), reversed(examples), strict=True))
    rows: list[Features] = []
    for distinct in batched(list(first.values()), batch_size):
        held = [each_of(example.samples[modality]) for example in distinct]
        pooled = pool(model.encode(modality, [one for each in held for one in each]))
        rows += [torch.cat(list(own)) for own in torch.split(pooled, [len(each) for each in held])]
        progress("linear probe", len(rows), len(first))
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (distinct, features)
    place = {key: row for row, key in enumerate(first)}
    return padded[[place[key] for key in keys]]


def tasks(asked: Sequence[tuple[str, str]], test: Sequence[Example]) -> tuple[list[str], list[str]]:
    """Which task each training row and each test row belongs to.

    A probe does not read, so it is fitted for each task apart: questions whose training answers
    have none in common are of different tasks. A question that training never asked joins the
    first of them.

    Args:
        asked: what each training row asks, and its answer.
        test: of which what they ask counts.
    """
    task_of_answer: dict[str, str] = {}
    task_of_prompt: dict[str, str] = {}
    for prompt, label in sorted(set(asked)):
        old, new = task_of_answer.get(label), task_of_prompt.setdefault(prompt, prompt)
        task_of_answer[label] = new
        if old is not None and old != new:  # two that share an answer become one
            for known in (task_of_answer, task_of_prompt):
                known.update({key: new for key, its in known.items() if its == old})
    first = min(task_of_prompt.values())
    here = [task_of_prompt[prompt] for prompt, _ in asked]
    return here, [task_of_prompt.get(asks(example), first) for example in test]


def asks(example: Example) -> str:
    """What a row asks, however it is put: its prompt, or the kinds of a bank that may ask it."""
    if example.questions is None:
        return example.prompt
    return f"a question of {', '.join(sorted(example.questions.of(held_out=False)))}"


def gain(
    answers: Sequence[Answered],
    train_labels: Sequence[str],
    *,
    resamples: int,
    seed: int,
    judge: SentenceEncoder | None = None,
) -> Gain:
    """Accuracies and paired gains, with intervals.

    Args:
        answers: the test examples with all their answers.
        train_labels: answers of the training examples; the commonest one is chance's.
        resamples: of the intervals.
        seed: of the intervals.
        judge: says how like an answer is to the expected one; None to leave that out.
    """
    estimate = partial(bootstrap, resamples=resamples, seed=seed)
    expected = [row.expected for row in answers]
    with_modality = exact_match([row.answer for row in answers], expected)
    base = exact_match([row.base for row in answers], expected)
    shuffled = exact_match([row.shuffled for row in answers], expected)
    commonest = Counter(map(normalise, train_labels)).most_common(1)[0][0]
    classes = sorted(set(map(normalise, expected)))
    names = [normalise(answer) for answer in expected]
    return Gain(
        accuracy=estimate(with_modality),
        probe=estimate(exact_match([row.probe for row in answers], expected)),
        base=estimate(base),
        shuffled=estimate(shuffled),
        chance=estimate(exact_match([commonest] * len(answers), expected)),
        over_base=estimate(with_modality - base),
        over_shuffled=estimate(with_modality - shuffled),
        per_class={
            name: estimate(with_modality[[other == name for other in names]]) for name in classes
        },
        confusion=confusion(answers, {*classes, *map(normalise, train_labels)}),
        semantic=estimate(similarity(judge, [row.answer for row in answers], expected))
        if judge
        else None,
        token_f1=estimate(token_f1([row.answer for row in answers], expected)),
    )


def confusion(answers: Sequence[Answered], classes: set[str]) -> Mapping[str, Mapping[str, int]]:
    """For each expected answer, how often each class, or ``OTHER``, was answered."""
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in sorted({normalise(row.expected) for row in answers})
    }
    for row in answers:
        given = normalise(row.answer)
        counts[normalise(row.expected)][given if given in classes else OTHER] += 1
    return {name: dict(sorted(row.items())) for name, row in counts.items()}


def by_dataset(answers: Sequence[Answered], *, resamples: int, seed: int) -> dict[str, GroupGain]:
    """Each dataset's own result; none where one dataset of questions or classes is all there is."""
    names = list(dict.fromkeys(row.dataset for row in answers))
    if len(names) == 1 and answers[0].task != CAPTIONS:
        return {}
    groups = [[row for row in answers if row.dataset == name] for name in names]
    return {
        name or rows[0].task: _group_gain(rows, resamples, seed)
        for name, rows in zip(names, groups, strict=True)
    }


def by_kind(answers: Sequence[Answered], *, resamples: int, seed: int) -> dict[str, GroupGain]:
    """The result on each kind of question; captions count only among themselves."""
    kinds = dict.fromkeys(row.kind for row in answers if row.kind)
    return {
        kind: _group_gain(
            without_captions([row for row in answers if row.kind == kind]), resamples, seed
        )
        for kind in kinds
    }


def _group_gain(rows: Sequence[Answered], resamples: int, seed: int) -> GroupGain:
    estimate = partial(bootstrap, resamples=resamples, seed=seed)
    measure, score = MEASURES.get(rows[0].task, ("exact match", exact_match))
    expected = [row.expected for row in rows]
    score_with = score([row.answer for row in rows], expected)
    base = score([row.base for row in rows], expected)
    shuffled = score([row.shuffled for row in rows], expected)
    return GroupGain(
        task=rows[0].task,
        measure=measure,
        score=estimate(score_with),
        base=estimate(base),
        shuffled=estimate(shuffled),
        over_base=estimate(score_with - base),
        over_shuffled=estimate(score_with - shuffled),
    )


def without_captions(answers: Sequence[Answered]) -> Sequence[Answered]:
    """The answers that are right or wrong; all, if all are captions."""
    return [row for row in answers if row.task != CAPTIONS] or answers
