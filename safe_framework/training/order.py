"""Random choices that depend on the step alone, so that a resumed run makes the same ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


def generator(*numbers: int) -> torch.Generator:
    """A generator seeded by a few numbers, such as a run's seed and a step."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63)
    return torch.Generator().manual_seed(seed)


def balanced_order(seed: int, labels: Sequence[str], count: int) -> list[int]:
    """``count`` positions in ``labels`` such that every distinct label comes equally often.

    Labels are dealt in shuffled passes, and each label's positions are read in shuffled passes.
    """
    places: dict[str, list[int]] = {}
    for position, label in enumerate(labels):
        places.setdefault(label, []).append(position)
    groups = list(places.values())
    dealt = shuffled_slice(seed, 0, count, len(groups))
    times = Counter(dealt)
    readers = [
        iter([members[i] for i in shuffled_slice(seed + group + 1, 0, times[group], len(members))])
        for group, members in enumerate(groups)
    ]
    return [next(readers[group]) for group in dealt]


def shuffled_slice(seed: int, start: int, count: int, size: int) -> list[int]:
    """Positions ``start`` to ``start + count`` of an endless reading of ``size`` items.

    Each pass reads every item once, in an order of its own.
    """
    chosen: list[int] = []
    while len(chosen) < count:
        passed, offset = divmod(start + len(chosen), size)
        order = torch.randperm(size, generator=generator(seed, passed)).tolist()
        chosen += order[offset : offset + count - len(chosen)]
    return chosen


class FixedOrder(Sampler[int]):
    """Draws places in an order that is known beforehand."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)
