"""The same rows asked in forms that training never saw, and in chats that it never saw."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from safe_framework.data.questions import Asked
from safe_framework.evaluation.answers import answer
from safe_framework.evaluation.gain import MEASURES, question_of_prompt
from safe_framework.evaluation.metrics import Estimate, bootstrap, exact_match, normalise
from safe_framework.evaluation.results import (
    HELD_OUT,
    TRAINED,
    AskedAgain,
    FormScore,
    KindWordings,
    Wordings,
)
from safe_framework.utils.progress import ProgressCallback, no_progress

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example

_ROWS_OF_A_FORM = 24
"""Rows that a held-out form is asked of, so that the worst of some is not mere chance."""


@attrs.frozen
class Question:
    """A question to ask, and how its answer is judged."""

    example: Example
    way: str
    kind: str
    form: str
    asked: Asked | None = None

    def score(self, given: str) -> float:
        """1.0 for a right answer, 0.0 for a wrong one; of a caption its measure."""
        _, measure = MEASURES.get(self.example.task, ("", exact_match))
        return float(measure([self.example.judged(given)], [self._expected])[0])

    @property
    def expected_class(self) -> str:
        """Among which a balanced accuracy is the mean: yes and no, or the answers."""
        return normalise(self._expected)

    @property
    def _expected(self) -> str:
        return self.example.judged(self.example.answer)


def ask_other_wordings(
    model: SafeModel,
    modality: str,
    test: Sequence[Example],
    right: Sequence[float],
    *,
    count: int,
    chats: Mapping[str, str],
    max_new_tokens: int,
    batch_size: int,
    resamples: int,
    seed: int,
    progress: ProgressCallback = no_progress,
) -> Wordings | None:
    """Ask test rows anew; None where they have no other forms and are not asked in a chat.

    Args:
        model: in eval mode.
        modality: whose gate is 1.
        test: as they were asked.
        right: how right the answer to each was.
        count: questions of each kind in held-out forms, at most; 0 asks nothing.
        chats: the text around ``{question}`` of other chats, by what is different in them.
        max_new_tokens: limit of an answer's length.
        batch_size: questions at a time.
        resamples: of the intervals.
        seed: chooses forms, rows and answers to compare with.
        progress: called after every batch.
    """
    drawn = drawn_by(seed)
    questions = other_questions(test, count, drawn)
    beside = _in_chats(model, test, right, count // 2 or count, chats, drawn) if count else {}
    questions += [one for some in beside.values() for one, _ in some]
    if not questions:
        return None
    examples = [one.example for one in questions]
    given = answer(
        model,
        examples,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        gate={modality: 1.0},
        label="other wordings",
        progress=progress,
    )
    scored = {id(one): one.score(text) for one, text in zip(questions, given, strict=True)}
    estimate = partial(bootstrap, resamples=resamples, seed=seed)
    shown = zip(test, right, strict=True)
    first = [(e, score) for e, score in shown if e.questions is not None]
    return Wordings(
        kinds=_kinds(questions, scored, first, estimate),
        chats={
            way: estimate([scored[id(one)] for one, _ in some]) for way, some in beside.items()
        },
        chats_trained={way: estimate([was for _, was in some]) for way, some in beside.items()},
        asked=tuple(
            AskedAgain(
                one.way, one.kind, one.form, one.example.place, _text_of(one, model, chats),
                one.example.answer, text, scored[id(one)],
            )
            for one, text in zip(questions, given, strict=True)
        ),
    )  # fmt: skip


def drawn_by(seed: int) -> random.Random:
    """What draws the other wordings of a run with this seed."""
    return random.Random(repr((seed, "wordings")))


def other_questions(test: Sequence[Example], count: int, drawn: random.Random) -> list[Question]:
    """Questions of every kind in held-out forms, and of all but the first in trained ones.

    They are the first that ``ask_other_wordings`` asks, for the same draw.

    Args:
        test: rows, those with a bank among them are asked.
        count: of each kind in held-out forms, at most, and half as many in trained ones.
        drawn: chooses forms and rows.
    """
    rows = [example for example in test if example.questions is not None]
    found: list[Question] = []
    for (dataset, kind), name in _named(rows).items() if count else ():
        own = [row for row in rows if row.dataset == dataset and kind in _kinds_of(row)]
        drawn.shuffle(own)
        held = own[0].questions.of(held_out=True).get(kind, [])  # type: ignore[union-attr]  # as chosen above
        trained = own[0].questions.of(held_out=False)[kind]  # type: ignore[union-attr]  # likewise
        if held:
            found += _asked(own, name, HELD_OUT, drawn.sample(held, len(held)), count)
        if any(_kinds_of(row)[0] != kind for row in own):
            found += _asked(own, name, TRAINED, drawn.sample(trained, len(trained)), count // 2)
    return found


def _named(rows: Sequence[Example]) -> dict[tuple[str, str], str]:
    """What each kind of question of each dataset is called: by its dataset too, if several have it.

    Args:
        rows: with questions.
    """
    pairs = list(dict.fromkeys((row.dataset, kind) for row in rows for kind in _kinds_of(row)))
    often = Counter(kind for _, kind in pairs)
    return {pair: pair[1] if often[pair[1]] == 1 else ": ".join(pair) for pair in pairs}


def _kinds_of(example: Example) -> list[str]:
    assert example.questions is not None
    return list(example.questions.of(held_out=False))


def _asked(
    rows: Sequence[Example], kind: str, way: str, forms: Sequence[Any], count: int
) -> list[Question]:
    """A few forms, each asked of as many rows in turn, half of them so that yes is right."""
    count = min(count, len(rows) * len(forms))
    if way == HELD_OUT:
        forms = forms[: max(1, count // min(_ROWS_OF_A_FORM, len(rows)))]
    found = []
    for number in range(count):
        turn, place = divmod(number, len(forms))
        form = forms[place]
        # A row comes again only once all have come, and then in another form.
        row = rows[(number + number // math.lcm(len(rows), len(forms))) % len(rows)]
        assert row.questions is not None
        asked = row.questions.ask(form, turn=number, is_yes=(turn + place) % 2 == 0)
        found.append(Question(row.ask(asked), way, kind, form.question, asked))
    return found


def _in_chats(
    model: SafeModel,
    test: Sequence[Example],
    right: Sequence[float],
    count: int,
    chats: Mapping[str, str],
    drawn: random.Random,
) -> dict[str, list[tuple[Question, float]]]:
    """Rows as they were asked, but in other chats; each with how right it was answered before."""
    before, _, after = model.processor.template.partition("{question}")
    rows = [
        (example, was)
        for example, was in zip(test, right, strict=True)
        if not example.images
        and example.prompt.startswith(before)
        and example.prompt.endswith(after)
    ]
    rows = drawn.sample(rows, min(count, len(rows)))
    found: dict[str, list[tuple[Question, float]]] = {}
    for way, template in chats.items() if rows else ():
        found[way] = []
        for example, was in rows:
            asked = question_of_prompt(example.prompt, model.processor.template)
            again = attrs.evolve(example, prompt=template.replace("{question}", asked))
            found[way].append((Question(again, way, "", asked), was))
    return found


def _kinds(
    questions: Sequence[Question],
    scored: Mapping[int, float],
    first: Sequence[tuple[Example, float]],
    estimate: Callable[[Sequence[float]], Estimate],
) -> dict[str, KindWordings]:
    found, names = {}, _named([example for example, _ in first])
    for kind in dict.fromkeys(one.kind for one in questions if one.kind):
        held = [one for one in questions if (one.kind, one.way) == (kind, HELD_OUT)]
        known = [one for one in questions if (one.kind, one.way) == (kind, TRAINED)]
        trained = [(one.expected_class, scored[id(one)]) for one in known]
        trained = trained or [
            (normalise(e.answer), score)
            for e, score in first
            if names[e.dataset, _kinds_of(e)[0]] == kind
        ]
        if not held:
            continue
        pairs = [(one.expected_class, scored[id(one)]) for one in held]
        forms = {
            form: [scored[id(one)] for one in held if one.form == form]
            for form in dict.fromkeys(one.form for one in held)
        }
        found[kind] = KindWordings(
            trained=estimate([score for _, score in trained]),
            held_out=estimate([score for _, score in pairs]),
            trained_balanced=balanced(trained),
            balanced=balanced(pairs),
            forms=tuple(
                FormScore(form, float(np.mean(some)), len(some)) for form, some in forms.items()
            ),
        )
    return found


def balanced(pairs: Sequence[tuple[str, float]]) -> float:
    """The mean over classes of the mean score in each.

    >>> balanced([("yes", 1.0), ("yes", 1.0), ("yes", 0.0), ("no", 0.0)])
    0.3333333333333333
    """
    classes = sorted({name for name, _ in pairs})
    means = [np.mean([score for own, score in pairs if own == name]) for name in classes]
    return float(np.mean(means))


def _text_of(one: Question, model: SafeModel, chats: Mapping[str, str]) -> str:
    if one.asked is not None:
        return one.asked.question
    return question_of_prompt(one.example.prompt, chats[one.way])
