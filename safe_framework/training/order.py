"""Random choices that depend on the step alone, so that a resumed run makes the same ones."""

from __future__ import annotations

import torch


def generator(*numbers: int) -> torch.Generator:
    """A generator seeded by a few numbers, such as a run's seed and a step."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63)
    return torch.Generator().manual_seed(seed)


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
