"""Which example comes when, from one dataset or from several that are mixed by weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safe_framework.training.sampling import balanced_order, shuffled_slice

_APART = 1_000_003  # between the seeds of two datasets, beyond any number of answers


def run_order(
    datasets: Sequence[str],
    answers: Sequence[str],
    count: int,
    *,
    seed: int,
    balance: bool,
    weights: Mapping[str, float] | None = None,
) -> list[int]:
    """``count`` places in the examples, of which any beginning depends on the seed alone.

    Args:
        datasets: the dataset of each example.
        answers: the answer of each example.
        count: how many are drawn in the whole run.
        seed: of the order within each dataset.
        balance: draw every distinct answer of a dataset equally often.
        weights: share of each dataset, relative to the others'; equal if None.
    """
    names = list(dict.fromkeys(datasets))
    members = {name: [i for i, own in enumerate(datasets) if own == name] for name in names}
    turns = shares([(weights or {}).get(name, 1.0) for name in names], count)
    readers = []
    for number, name in enumerate(names):
        own, drawn = seed + number * _APART, turns.count(number)
        if balance:
            order = balanced_order(own, [answers[i] for i in members[name]], drawn)
        else:
            order = shuffled_slice(own, 0, drawn, len(members[name]))
        readers.append(iter([members[name][i] for i in order]))
    return [next(readers[turn]) for turn in turns]


def shares(weights: Sequence[float], count: int) -> list[int]:
    """Whose turn it is ``count`` times, such that any beginning is shared out by weight.

    Whoever is furthest behind its share is next; the first of equals.

    >>> shares([2.0, 1.0], 6)
    [0, 1, 0, 0, 1, 0]
    """
    total, drawn, turns = sum(weights), [0] * len(weights), list[int]()
    for step in range(1, count + 1):
        behind = [weight * step / total - had for weight, had in zip(weights, drawn, strict=True)]
        turn = behind.index(max(behind))
        drawn[turn] += 1
        turns.append(turn)
    return turns
