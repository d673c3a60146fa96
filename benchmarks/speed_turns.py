"""Times of several ways to do the same thing, which take turns, and what they are compared by.

A machine that is shared has slow minutes. When the arms take turns within one process, such a
minute falls on all of them, and the ratio of two arms within one round says more than either time.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch

Seconds = Mapping[str, Sequence[float]]


@attrs.frozen
class Compared:
    """One arm against another, round by round.

    Attributes:
        seconds: median of the arm's own times.
        ratio: median over rounds of its time to the other's.
        low: lower quartile of that ratio.
        high: its upper quartile.
        least: ratio of the fastest rounds of the two, which noise moves least.
        rounds: how many there were.
    """

    seconds: float
    ratio: float
    low: float
    high: float
    least: float
    rounds: int


def taking_turns(
    arms: Mapping[str, Callable[[], float | None]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each arm in each round; every other round runs them backwards.

    Args:
        arms: by name; one that returns a number has taken its own time.
        rounds: that are counted.
        warm_up: rounds before them.
    """
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-warm_up, rounds):
        for name in list(arms) if number % 2 else list(arms)[::-1]:
            seconds = clocked(arms[name])
            if number >= 0:
                found[name].append(seconds)
    return found


def clocked(work: Callable[[], float | None]) -> float:
    """Seconds that ``work`` took, or the seconds that it returns."""
    start = now()
    reported = work()
    return now() - start if reported is None else reported


def now() -> float:
    """Seconds of a clock, once a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def spent() -> float:
    """Seconds of a core, so that other work does not count; on a GPU, those of ``now``."""
    return now() if torch.cuda.is_available() else time.process_time()


def peak_gib() -> float:
    """The most memory that this process has had, of the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compare(found: Seconds, arm: str, against: str) -> Compared:
    """One arm's times against those of another in the same rounds."""
    ratios = [own / other for own, other in zip(found[arm], found[against], strict=True)]
    low, high = spread(ratios)
    least = min(found[arm]) / min(found[against])
    return Compared(
        statistics.median(found[arm]), statistics.median(ratios), low, high, least, len(ratios)
    )


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles; the extremes where there are too few values for them."""
    if len(values) < 4:
        return min(values), max(values)
    quarters = statistics.quantiles(values, n=4, method="inclusive")
    return quarters[0], quarters[2]
