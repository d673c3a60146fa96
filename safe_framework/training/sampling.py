"""Random choices that depend on the step alone, so that a resumed run makes the same ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

_SEED_STRIDE = 1_000_003  # between the seeds of two datasets, beyond any number of answers
_SPAN = 16  # steps whose texts are dealt out together


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
    positions: dict[str, list[int]] = {}
    for position, label in enumerate(labels):
        positions.setdefault(label, []).append(position)
    groups = list(positions.values())
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


def training_order(
    datasets: Sequence[str],
    answers: Sequence[str],
    count: int,
    *,
    seed: int,
    balance: bool,
    weights: Mapping[str, float] | None = None,
) -> list[int]:
    """``count`` indices into the examples, of which any prefix depends on the seed alone.

    They come from one dataset, or from several that are mixed by weight.

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
    turns = weighted_turns([(weights or {}).get(name, 1.0) for name in names], count)
    readers = []
    for number, name in enumerate(names):
        own, drawn = seed + number * _SEED_STRIDE, turns.count(number)
        if balance:
            order = balanced_order(own, [answers[i] for i in members[name]], drawn)
        else:
            order = shuffled_slice(own, 0, drawn, len(members[name]))
        readers.append(iter([members[name][i] for i in order]))
    return [next(readers[turn]) for turn in turns]


def weighted_turns(weights: Sequence[float], count: int) -> list[int]:
    """Whose turn it is ``count`` times, such that any prefix is shared by weight.

    Whoever is furthest behind its share is next; the first of equals.

    >>> weighted_turns([2.0, 1.0], 6)
    [0, 1, 0, 0, 1, 0]
    """
    total, drawn, turns = sum(weights), [0] * len(weights), list[int]()
    for step in range(1, count + 1):
        behind = [weight * step / total - had for weight, had in zip(weights, drawn, strict=True)]
        turn = behind.index(max(behind))
        drawn[turn] += 1
        turns.append(turn)
    return turns


class TextOrder:
    """Which texts each step reads: every one once in each pass, from the step's number alone.

    Args:
        lengths: tokens in each text.
        batch_size: texts in a step.
        seed: of the order.
        grouped: give a step texts of like length. Which texts a span of steps reads is the same
            either way, and so is what each token weighs in the sum of their losses: see ``share``.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, grouped: bool = False
    ) -> None:
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.grouped = grouped

    def step(self, step: int) -> list[int]:
        """Indices of the texts of a step."""
        size, count = self.batch_size, len(self.lengths)
        if not self.grouped:
            return shuffled_slice(self.seed, step * size, size, count)
        span, turn = divmod(step, _SPAN)
        dealt = shuffled_slice(self.seed, span * _SPAN * size, _SPAN * size, count)
        dealt.sort(key=self.lengths.__getitem__)
        first = size * int(torch.randperm(_SPAN, generator=generator(self.seed, span, 2))[turn])
        return dealt[first : first + size]

    def share(self, chosen: Sequence[int]) -> float:
        """The factor on the mean over a step's tokens: how many they are, relative to a usual step.

        1 where texts are not grouped. Where they are, a step of short texts would otherwise weigh
        each of its tokens more than a step of long ones does.
        """
        if not self.grouped:
            return 1.0
        usual = self.batch_size * sum(self.lengths) / len(self.lengths)
        return sum(self.lengths[index] for index in chosen) / usual

    def needed(self, steps: int) -> list[int]:
        """Indices of all texts that the first ``steps`` steps read."""
        whole = -(-steps // _SPAN) * _SPAN  # spans are read whole
        if whole * self.batch_size >= len(self.lengths):
            return list(range(len(self.lengths)))
        return shuffled_slice(self.seed, 0, whole * self.batch_size, len(self.lengths))
