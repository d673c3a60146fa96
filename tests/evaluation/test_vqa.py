"""VQA accuracy, against the benchmark's rules worked out by hand."""

import numpy as np
import pytest

from safe_framework.evaluation.metrics import bootstrap_ratio
from safe_framework.evaluation.vqa import vqa_accuracy, vqa_normalise, vqa_score

PEOPLE = ["red"] * 2 + ["blue"] * 3 + ["green"] * 5


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        # Two people agree: of ten sets of nine, two hold one of them (1/3), eight hold both (2/3).
        ("red", (2 * 1 / 3 + 8 * 2 / 3) / 10),
        # Three agree: three sets hold two (2/3), seven all three (1).
        ("blue", (3 * 2 / 3 + 7 * 1) / 10),
        ("green", 1.0),
        ("white", 0.0),
        ("", 0.0),
    ],
)
def test_an_answer_is_averaged_over_the_sets_that_leave_one_person_out(
    answer: str, score: float
) -> None:
    """Law: the mean over ten sets of nine of ``min(agreeing / 3, 1)``."""
    assert vqa_score(answer, PEOPLE) == pytest.approx(score)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10])
def test_full_agreement_is_one_however_few_answered(count: int) -> None:
    """Law: what everybody says is right, and what nobody says is wrong."""
    assert vqa_score("red", ["red"] * count) == 1.0
    assert vqa_score("blue", ["red"] * count) == 0.0


def test_nobody_to_agree_with_is_refused() -> None:
    """Law: without an answer there is no score."""
    with pytest.raises(ValueError, match="people"):
        vqa_score("red", [])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes, it is.", "yes it is"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("the cat", "A cat"),
        ("1,000", "1000"),
        ("red/blue", "red blue"),
        ("don't", "dont"),
        ("wouldn't've", "wouldnt've"),
        ("what's that", "whats that"),
        ("U.S.", "us"),
        ("a\nred\tcar", "red car"),
        ("-3", "3"),
    ],
)
def test_spellings_of_one_answer_are_equal(one: str, other: str) -> None:
    """Law: case, articles, number words, punctuation and apostrophes make no difference."""
    assert vqa_normalise(one) == vqa_normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2.5", "25"),
        ("we're", "were"),
        ("I'll", "ill"),
        ("dog's", "dogs"),
        ("eleven", "11"),
        ("A", "the"),
        ("", "a"),
    ],
)
def test_other_answers_stay_apart(one: str, other: str) -> None:
    """Law: nothing else is made equal."""
    assert vqa_normalise(one) != vqa_normalise(other)


def test_many_answers_are_scored_at_once() -> None:
    """Law: one score for each answer, in order."""
    found = vqa_accuracy(["red", "2"], [["red"], ["two"]])
    assert found.tolist() == [1.0, 1.0]


def test_a_ratio_draws_both_sides_together() -> None:
    """Law: what is always half of the reference has a ratio of a half, without any spread."""
    reference = np.array([0.0, 1.0, 0.5, 1.0])
    found = bootstrap_ratio(reference / 2, reference, resamples=200, seed=0)
    assert found is not None
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 4)
    assert bootstrap_ratio([1.0], [0.0]) is None
