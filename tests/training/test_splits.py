"""What is kept from training to measure on."""

from collections import Counter
from collections.abc import Sequence

import attrs
import numpy as np
import pytest

from safe_framework.config.schema import MonitorSpec
from safe_framework.data.examples import Example
from safe_framework.errors import DataError
from safe_framework.training.splits import balanced_subset, evenly_spaced, hold_out


def rows(answers: Sequence[str], contents: Sequence[int]) -> list[Example]:
    """Examples whose sample is one number."""
    return [
        Example("", answer, {"touch": np.array([float(one)])}, place=f"rows:{number}")
        for number, (answer, one) in enumerate(zip(answers, contents, strict=True))
    ]


def test_held_out_rows_share_no_sample_with_training() -> None:
    """Law: a sample that is measured on stands in no row that is trained on."""
    every = rows("abababababab", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    held, left = hold_out(MonitorSpec(held_out=0.25), 3, every, None, {})
    known = {float(one.samples["touch"][0]) for one in held}
    assert len(held) == len(known) == 3
    assert not known & {float(every[index].samples["touch"][0]) for index in left}
    assert len(left) == 6


def test_answers_keep_their_shares() -> None:
    """Law: of what is held out each answer has its part."""
    every = rows("a" * 30 + "b" * 10, range(40))
    for seed in range(5):
        found = [every[index].answer for index in balanced_subset(every, 8, seed)]
        assert Counter(found) == {"a": 6, "b": 2}


def test_the_seed_decides() -> None:
    """Law: equal seeds hold out equal rows, others others."""
    every = rows("a" * 40, range(40))
    assert (
        balanced_subset(every, 4, 1) == balanced_subset(every, 4, 1) != balanced_subset(every, 4, 2)
    )


def test_rows_without_a_sample_are_trained_on() -> None:
    """Law: a row that carries nothing to hear is never held out."""
    every = [*rows("ab", [1, 2]), *[Example("", "a", place=f"bare:{n}") for n in range(6)]]
    held, left = hold_out(MonitorSpec(held_out=0.1), 0, every, None, {})
    assert len(held) == 1
    assert set(range(2, 8)) <= set(left)


def test_no_more_is_held_out_than_is_measured() -> None:
    """Law: `max_examples` leaves the rest to training."""
    held, left = hold_out(
        MonitorSpec(held_out=0.5, max_examples=2), 0, rows("a" * 9, range(9)), None, {}
    )
    assert (len(held), len(left)) == (2, 7)


def test_too_few_rows_are_refused() -> None:
    """Law: where nothing would be left to train on, an error says what to do."""
    with pytest.raises(DataError, match="too few training rows"):
        hold_out(MonitorSpec(), 0, rows("aa", [1, 1]), None, {})


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_evenly_spaced_takes_as_many_as_there_are(count: int) -> None:
    """Law: the items are distinct, in order, and as many as were asked for or all."""
    found = evenly_spaced(range(8), count)
    assert found == sorted(set(found))
    assert len(found) == min(count, 8)


def test_a_conversation_is_held_out_whole() -> None:
    """Law: no turn of a conversation that is measured on is trained on, whatever it carries."""
    turns = [
        attrs.evolve(one, place=f"talks:{number // 3}, message {2 * (number % 3) + 2}")
        for number, one in enumerate(rows("abc" * 4, range(12)))
    ]
    held, left = hold_out(MonitorSpec(held_out=0.1), 0, turns, None, {})
    (talk,) = {one.place.partition(",")[0] for one in held}
    assert [
        index for index, one in enumerate(turns) if not one.place.startswith(f"{talk},")
    ] == left
