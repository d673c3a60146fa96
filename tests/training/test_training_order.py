"""The order of a run over one dataset or several."""

import pytest

from safe_framework.training.sampling import (
    balanced_order,
    shuffled_slice,
    training_order,
    weighted_turns,
)

NAMES = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
ANSWERS = ["x", "x", "x", "x", "y", "u", "u", "v", "p", "q"]
WEIGHTS = {"a": 1.0, "b": 0.5, "c": 2.5}


def order(count: int, seed: int = 0, balance: bool = False) -> list[int]:
    """The order of the three datasets."""
    return training_order(NAMES, ANSWERS, count, seed=seed, balance=balance, weights=WEIGHTS)


def test_one_dataset_is_read_as_it_always_was() -> None:
    """Law: without a mix the order is the plain or the balanced one of the seed."""
    one, answers = [""] * 5, ANSWERS[:5]
    plain = training_order(one, answers, 20, seed=3, balance=False)
    assert plain == shuffled_slice(3, 0, 20, 5)
    assert training_order(one, answers, 20, seed=3, balance=True) == balanced_order(3, answers, 20)


@pytest.mark.parametrize("balance", [False, True])
def test_any_beginning_of_the_order_is_that_of_a_longer_run(balance: bool) -> None:
    """Law: what is drawn at a step depends on the seed and the step, not on the run's length."""
    assert order(37, balance=balance) == order(200, balance=balance)[:37]
    assert order(37, balance=balance) != order(37, seed=1, balance=balance)


def test_any_beginning_is_shared_out_by_weight() -> None:
    """Law: at any step, each dataset has had its share to within one row."""
    turns = weighted_turns(list(WEIGHTS.values()), 400)
    for length in range(1, 401):
        for number, weight in enumerate(WEIGHTS.values()):
            due = length * weight / sum(WEIGHTS.values())
            assert abs(turns[:length].count(number) - due) < 1


def test_each_dataset_is_read_in_whole_passes() -> None:
    """Law: within a dataset every row comes once before any comes again."""
    drawn = [place for place in order(80) if NAMES[place] == "b"]
    assert len(drawn) == 10
    assert [sorted(drawn[start : start + 3]) for start in (0, 3, 6)] == [[5, 6, 7]] * 3


def test_balancing_is_within_a_dataset() -> None:
    """Law: balanced, the answers of each dataset come equally often there."""
    drawn = [ANSWERS[place] for place in order(160, balance=True) if NAMES[place] == "a"]
    assert (drawn.count("x"), drawn.count("y")) == (20, 20)


def test_datasets_without_weights_are_drawn_alike() -> None:
    """Law: without weights, the shares are equal whatever the sizes."""
    drawn = training_order(NAMES, ANSWERS, 30, seed=0, balance=False)
    assert [sum(NAMES[place] == name for place in drawn) for name in "abc"] == [10, 10, 10]
