"""Two recipes, or one over several seeds, compared on the same test rows and texts.

A difference is estimated from the differences of each row, and its interval draws rows and, where
there are several, seeds. Between two single runs, the exact test of McNemar (1947) looks at the
rows that only one of them answers right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import stdev

import attrs
import numpy as np
from numpy.typing import NDArray

from safe_framework.errors import DataError
from safe_framework.evaluation.metrics import exact_match, percentiles, token_f1
from safe_framework.evaluation.relevance_risk import Counted
from safe_framework.evaluation.results import HELD_OUT, Evaluation, PictureQuestion
from safe_framework.evaluation.vqa import vqa_accuracy

_Rows = NDArray[np.float64]  # (seeds, rows): one value for each row of each run

_RESAMPLES = 2000


@attrs.frozen
class Aggregate:
    """One measure of several runs that differ by their seed.

    Attributes:
        value: mean over the runs.
        spread: standard deviation over the runs; None of a single one.
        runs: how many.
    """

    value: float
    spread: float | None
    runs: int


@attrs.frozen
class Difference:
    """How the second side of a comparison differs from the first.

    Attributes:
        name: of the measure.
        first: of the first side.
        second: of the second side; None where there is only one.
        difference: second less first; None likewise.
        low: end of its 95 % interval.
        high: the other end.
        p: two-sided, that there is no difference; None where there is none to test.
        test: how ``p`` was found.
    """

    name: str
    first: Aggregate
    second: Aggregate | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: str = ""


def compare_runs(
    first: Sequence[Evaluation], second: Sequence[Evaluation] = (), *, seed: int = 0
) -> list[Difference]:
    """Accuracy, token F1, tokens kept and seeing of two sides, each of one run or several seeds.

    How often a gate that decides opens is compared where all runs were asked as many calls.
    Accuracy in held-out forms of questions is compared where all runs asked the same.

    Seeing is VQA accuracy, and the share of answers that are the base's, beside irrelevant samples;
    where all runs asked the same questions about pictures.

    Args:
        first: runs of one recipe.
        second: runs of another, on the same test rows; none to look at ``first`` alone.
        seed: of the intervals.

    Raises:
        DataError: there is no run, or two runs were tested on different rows.
    """
    if not first:
        raise DataError("there is no run to compare")
    _check_rows([*first, *second])
    found = [
        _measure("right answers", first, second, _answers_right, None, seed),
        _measure("token F1", first, second, _token_f1, None, seed),
    ]
    lengths = {found.retention.overall.lengths for found in (*first, *second)}
    if len(lengths) == 1 and (weights := lengths.pop()):
        row = _measure("tokens kept", first, second, _tokens_kept, np.array(weights, float), seed)
        found.append(row)
    again = {_asked_again(run) for run in (*first, *second)}
    if len(again) == 1 and again.pop():
        found.append(_measure("in other words", first, second, _held_out_scores, None, seed))
    for what, calls in (("gate opens, not asked", _false_opens), ("gate opens, asked", _opens)):
        shapes = {_shape(calls(run)) for run in (*first, *second)}
        if len(shapes) == 1 and shapes.pop():
            found.append(_measure(what, first, second, partial(_flags, calls), None, seed))
    asked = {_picture_rows(run) for run in (*first, *second)}
    if len(asked) == 1 and asked.pop():
        for name, values in (
            ("VQA accuracy", _seen_right),
            ("pictures kept", _seen_unchanged),
        ):
            found.append(_measure(name, first, second, values, None, seed))
    return found


def _check_rows(runs: Sequence[Evaluation]) -> None:
    asked = {tuple((row.place, row.question, row.expected) for row in run.answers) for run in runs}
    if len(asked) > 1:
        raise DataError(
            "the runs were tested on different rows, so that no two can be paired",
            hint="compare runs with the same `test` file",
        )


def _answers_right(run: Evaluation) -> _Rows:
    answers = run.answers
    return exact_match([row.answer for row in answers], [row.expected for row in answers])


def _token_f1(run: Evaluation) -> _Rows:
    answers = run.answers
    return token_f1([row.answer for row in answers], [row.expected for row in answers])


def _tokens_kept(run: Evaluation) -> _Rows:
    return np.array(run.retention.overall.shares, float)


def _asked_again(run: Evaluation) -> tuple[tuple[str, str], ...]:
    """What a run asked in forms that were kept from training; nothing if it did not."""
    asked = run.wordings.asked if run.wordings else ()
    return tuple((one.place, one.question) for one in asked if one.way == HELD_OUT)


def _held_out_scores(run: Evaluation) -> _Rows:
    assert run.wordings is not None
    return np.array([one.score for one in run.wordings.asked if one.way == HELD_OUT], float)


def _false_opens(run: Evaluation) -> Mapping[str, Counted]:
    return run.relevance.false_opens if run.relevance else {}


def _opens(run: Evaluation) -> Mapping[str, Counted]:
    return run.relevance.opens if run.relevance else {}


def _shape(calls: Mapping[str, Counted]) -> tuple[tuple[str, int], ...]:
    """Of which kinds calls were, and how many; nothing where a run's gate did not decide."""
    return tuple((kind, one.calls) for kind, one in calls.items())


def _flags(calls: Callable[[Evaluation], Mapping[str, Counted]], run: Evaluation) -> _Rows:
    """1.0 for each call on which the gate opened."""
    return np.array([float(flag) for one in calls(run).values() for flag in one.each])


def _picture_rows(run: Evaluation) -> tuple[tuple[object, ...], ...]:
    """What a run asked about pictures, and beside which kinds of samples; nothing if it did not."""
    questions = run.seeing.questions if run.seeing else ()
    return tuple((row.place, row.question, row.expected, *row.irrelevant) for row in questions)


def _beside_samples(
    run: Evaluation, score: Callable[[Sequence[str], Sequence[PictureQuestion]], _Rows]
) -> _Rows:
    """A score of each picture question, in the mean over all kinds of irrelevant samples."""
    assert run.seeing is not None
    rows = run.seeing.questions
    kinds = [[row.irrelevant[kind] for row in rows] for kind in rows[0].irrelevant]
    mean: _Rows = np.mean([score(answers, rows) for answers in kinds], axis=0)
    return mean


def _seen_right(run: Evaluation) -> _Rows:
    return _beside_samples(
        run, lambda answers, rows: vqa_accuracy(answers, [row.expected for row in rows])
    )


def _seen_unchanged(run: Evaluation) -> _Rows:
    return _beside_samples(
        run,
        lambda answers, rows: np.array(
            [given == row.base for given, row in zip(answers, rows, strict=True)], float
        ),
    )


def _measure(
    name: str,
    first: Sequence[Evaluation],
    second: Sequence[Evaluation],
    values: Callable[[Evaluation], _Rows],
    weights: _Rows | None,
    seed: int,
) -> Difference:
    one = np.stack([values(run) for run in first])
    weights = np.ones(one.shape[1]) if weights is None else weights
    if not second:
        return Difference(name, _aggregate(one, weights))
    other = np.stack([values(run) for run in second])
    drawn = _resampled_differences(one, other, weights, seed)
    low, high = percentiles(drawn)
    p, test = _bootstrap_p(drawn), "paired bootstrap"
    if values is _answers_right and len(first) == len(second) == 1:
        p, test = mcnemar(one[0], other[0]), "exact McNemar"
    sides = _aggregate(one, weights), _aggregate(other, weights)
    return Difference(name, *sides, sides[1].value - sides[0].value, low, high, p, test)


def _aggregate(rows: _Rows, weights: _Rows) -> Aggregate:
    means = np.average(rows, axis=1, weights=weights).tolist()
    return Aggregate(sum(means) / len(means), stdev(means) if len(means) > 1 else None, len(means))


def _resampled_differences(one: _Rows, other: _Rows, weights: _Rows, seed: int) -> _Rows:
    """Resampled differences: the same rows for both sides, seeds for each of its own."""
    random = np.random.default_rng(seed)
    found = np.empty(_RESAMPLES)
    for turn in range(_RESAMPLES):
        rows = random.integers(one.shape[1], size=one.shape[1])
        means = [
            np.average(side[random.integers(len(side), size=len(side))].mean(0)[rows],
                       weights=weights[rows])
            for side in (one, other)
        ]  # fmt: skip
        found[turn] = means[1] - means[0]
    return found


def _bootstrap_p(drawn: _Rows) -> float:
    """Twice the share of resampled differences on the rarer side of 0, of which one is counted."""
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))


def mcnemar(first: _Rows, second: _Rows) -> float:
    """Two-sided exact p of rows that only one of two is right on, as tosses of a fair coin.

    Args:
        first: 1.0 where it is right, else 0.0, (rows,).
        second: likewise.
    """
    gained, lost = int((second > first).sum()), int((second < first).sum())
    tosses = gained + lost
    tail: int = sum(math.comb(tosses, heads) for heads in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2**tosses))
