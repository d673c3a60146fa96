"""What was gained on each dataset of a mix, by the measure of its task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from safe_framework.data.tasks import CAPTIONS
from safe_framework.evaluation.metrics import bootstrap, exact_match, normalise
from safe_framework.evaluation.results import Answered, DatasetGain

_Score = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]


def by_dataset(answers: Sequence[Answered], *, resamples: int, seed: int) -> dict[str, DatasetGain]:
    """Each dataset's own result; none where one dataset of questions or classes is all there is."""
    names = list(dict.fromkeys(row.dataset for row in answers))
    if len(names) == 1 and answers[0].task != CAPTIONS:
        return {}
    estimate = partial(bootstrap, resamples=resamples, seed=seed)
    found = {}
    for name in names:
        rows = [row for row in answers if row.dataset == name]
        measure, score = MEASURES.get(rows[0].task, ("exact match", exact_match))
        expected = [row.expected for row in rows]
        sense = score([row.answer for row in rows], expected)
        base = score([row.base for row in rows], expected)
        shuffled = score([row.shuffled for row in rows], expected)
        found[name or rows[0].task] = DatasetGain(
            task=rows[0].task,
            measure=measure,
            score=estimate(sense),
            base=estimate(base),
            shuffled=estimate(shuffled),
            over_base=estimate(sense - base),
            over_shuffled=estimate(sense - shuffled),
        )
    return found


def closed(answers: Sequence[Answered]) -> Sequence[Answered]:
    """The answers that are right or wrong; all, if all are captions."""
    return [row for row in answers if row.task != CAPTIONS] or answers


def word_overlap(answers: Sequence[str], expected: Sequence[str]) -> NDArray[np.float64]:
    """F1 of the words that an answer and the expected one share, however they are ordered.

    >>> word_overlap(["A dog barks."], ["a dog runs and barks"]).round(2).tolist()
    [0.75]
    """
    return np.array([_f1(*pair) for pair in zip(answers, expected, strict=True)], float)


def _f1(given: str, right: str) -> float:
    said, meant = Counter(normalise(given).split()), Counter(normalise(right).split())
    shared = (said & meant).total()
    return 2 * shared / (said.total() + meant.total()) if shared else 0.0


MEASURES: dict[str, tuple[str, _Score]] = {CAPTIONS: ("words in common (F1)", word_overlap)}
