"""How much there is to verify, and how far it is, counted in forward calls of the base."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from safe_framework.utils.formatting import about
from safe_framework.verification.bench import Bench
from safe_framework.verification.calls import FORWARD, Call

VerificationProgress = Callable[[str, int, int, str], None]
"""Called with a label, how many forward calls are done, of how many, and what was done last."""

_GENERATION = 4
"""Forward calls that a call of ``generate`` takes as long as."""


def units_of(calls: Iterable[tuple[Call, Sequence[str]]]) -> int:
    """Forward calls that it takes to compare each call in some ways to be off."""
    return sum(call_units(call, ways) for call, ways in calls)


def call_units(call: Call, ways: Sequence[str]) -> int:
    """Forward calls that it takes to compare one call in some ways to be off."""
    return (1 + len(ways)) * (1 if call.method == "forward" else _GENERATION)


@attrs.define(eq=False)
class Work:
    """What a verification has done of what it has to do.

    Attributes:
        show: is told of it; None for nobody.
        costs: of a forward call of each bench, the first bench's being 1.
        total: forward calls of the first bench that everything takes as long as.
        done: those that are done.
    """

    show: VerificationProgress | None
    costs: Mapping[Bench, float]
    total: float
    done: float = 0.0

    @classmethod
    def of(
        cls, units: Mapping[Bench, int], beside: float, show: VerificationProgress | None
    ) -> Work:
        """The work of forward calls of some benches, whose time is measured now.

        Args:
            units: forward calls of each bench.
            beside: seconds of work that is done at the end.
            show: is told of it.
        """
        seconds = {bench: _seconds(bench) for bench in units}
        first = next(iter(seconds.values()))
        costs = {bench: own / first for bench, own in seconds.items()}
        total = sum(count * costs[bench] for bench, count in units.items()) + beside / first
        work = cls(show, costs, total)
        work.note(about(total * first))
        return work

    def advance(self, bench: Bench, step: str, units: int) -> None:
        """Say that a step of a bench is done, which took as long as ``units`` forward calls."""
        self.done += units * self.costs[bench]
        self.note(step)

    def finish(self, step: str) -> None:
        """Say that everything is done."""
        self.done = self.total
        self.note(step)

    def note(self, step: str) -> None:
        """Say what is being done."""
        if self.show is not None:
            self.show("verify", round(self.done), round(self.total), step)


def _seconds(bench: Bench) -> float:
    """What a forward call takes, once it is warm."""
    taken: list[float] = []
    for _ in range(2):
        start = time.perf_counter()
        bench.run_base(FORWARD)
        taken.append(time.perf_counter() - start)
    return min(taken)
