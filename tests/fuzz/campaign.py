"""The cases of one kind of input, one after another: each with a seed and a folder of its own."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import attrs

from tests.fuzz.guard import Outcome, ended
from tests.fuzz.subjects import SUBJECTS, World

_LONGEST_WAIT = 300.0
"""Seconds of one case, as the clock goes: other programs may hold the processor meanwhile."""

_MOST_MEMORY = 4 << 30
"""Bytes that the process may ask for beside those that it has when it begins."""


@attrs.define
class Tally:
    """What came of some cases.

    Attributes:
        kinds: how many ended in each way.
        slowest: processor seconds of the slowest.
        memory: bytes that all together took beyond what was held at the start.
        faults: number and outcome of each that ended as it should not.
    """

    kinds: Counter[str] = attrs.field(factory=Counter)
    slowest: float = 0.0
    memory: int = 0
    faults: list[tuple[int, Outcome]] = attrs.field(factory=list)

    def add(self, number: int, outcome: Outcome) -> None:
        """Count one more."""
        self.kinds[outcome.kind] += 1
        self.slowest = max(self.slowest, outcome.seconds)
        self.memory += outcome.memory
        if not outcome.right:
            self.faults.append((number, outcome))


def outcomes(
    name: str, numbers: range, folder: Path, world: World | None = None
) -> Iterator[tuple[int, Outcome | None]]:
    """The number of each case before it is run, and then with what came of it.

    Args:
        name: of a subject.
        numbers: of the cases; a number and the name are the seed.
        folder: where all that they need is made.
        world: made before, if it was.
    """
    cache = Path(os.environ["SAFE_CACHE"])
    case = SUBJECTS[name](world or World.made(folder / "world"))
    for number in numbers:
        yield number, None
        own = folder / "case"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        random = Random(f"{name} {number}")
        yield number, ended(lambda random=random, own=own: case(random, own), own, cache)


def main() -> None:
    """Run the cases that the command line names, and print a line for each."""
    name, first, end, place = sys.argv[1:]
    faulthandler.enable()
    limited, folder = False, Path(place)
    (folder / "world").mkdir()
    for number, outcome in outcomes(name, range(int(first), int(end)), folder):
        if not limited:
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + _MOST_MEMORY,) * 2)
            limited = True
        faulthandler.dump_traceback_later(_LONGEST_WAIT, exit=True)
        print(json.dumps([number, outcome and attrs.asdict(outcome)]), flush=True)


if __name__ == "__main__":
    main()
