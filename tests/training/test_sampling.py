"""Orders and generators that depend on a few numbers alone."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_framework.training.sampling import balanced_order, generator, shuffled_slice

seeds, sizes = st.integers(0, 2**31), st.integers(1, 20)


@given(seeds, sizes, st.integers(0, 5))
def test_each_pass_reads_every_item_once(seed: int, size: int, passed: int) -> None:
    """Law: any whole pass is a permutation of all items."""
    assert sorted(shuffled_slice(seed, passed * size, size, size)) == list(range(size))


@given(seeds, sizes, st.integers(0, 60), st.integers(0, 30), st.integers(0, 30))
def test_a_slice_depends_on_seed_and_start_alone(
    seed: int, size: int, start: int, first: int, second: int
) -> None:
    """Law: reading in two parts gives what reading at once does."""
    whole = shuffled_slice(seed, start, first + second, size)
    parts = shuffled_slice(seed, start, first, size)
    assert whole == parts + shuffled_slice(seed, start + first, second, size)


def test_passes_have_orders_of_their_own() -> None:
    """Law: no two of ten passes over twenty items, nor two seeds, have the same order."""
    orders = {tuple(shuffled_slice(s, 20 * p, 20, 20)) for s in range(3) for p in range(10)}
    assert len(orders) == 30


def test_generators_of_other_numbers_are_others() -> None:
    """Law: numbers that differ in value, order or count seed other generators."""
    numbers = [(s, n) for s in range(30) for n in range(30)] + [(n,) for n in range(30)]
    numbers += [(s, n, 1) for s in range(30) for n in range(30)]
    drawn = {generator(*some).initial_seed() for some in numbers}
    assert len(drawn) == len(numbers)


def test_a_generator_leaves_the_global_one_alone() -> None:
    """Law: neither a generator nor an order moves the global random state."""
    before = torch.get_rng_state()
    shuffled_slice(1, 0, 50, 7)
    torch.randint(9, (), generator=generator(1, 2))
    assert torch.equal(torch.get_rng_state(), before)


@given(seeds, st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(1, 60))
def test_a_balanced_order_draws_each_label_equally(
    seed: int, labels: list[str], count: int
) -> None:
    """Law: distinct labels come equally often, but for one."""
    drawn = Counter(labels[place] for place in balanced_order(seed, labels, count))
    times = [drawn[label] for label in set(labels)]
    assert sum(times) == count
    assert max(times) - min(times) <= 1


@given(seeds, st.lists(st.sampled_from("abc"), min_size=1, max_size=20))
def test_a_balanced_order_reads_all_of_a_label_before_repeating(
    seed: int, labels: list[str]
) -> None:
    """Law: no item of a label comes twice before each of that label has come once."""
    order = balanced_order(seed, labels, 3 * len(labels))
    for label in set(labels):
        drawn = [place for place in order if labels[place] == label]
        members = labels.count(label)
        first = drawn[:members]
        assert len(set(first)) == len(first)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_balanced_order_is_a_prefix_of_a_longer_one(count: int) -> None:
    """Law: how many are drawn does not change the first ones."""
    labels = ["a", "b", "a", "a", "c"]
    assert balanced_order(5, labels, count) == balanced_order(5, labels, 30)[:count]
