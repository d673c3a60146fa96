"""``make fuzz``: a thousand mutations of each kind of input, and the figures in the docs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import Tally
from tests.fuzz.guard import Outcome
from tests.fuzz.page import PAGE, line, with_figures
from tests.fuzz.subjects import SUBJECTS


def main() -> int:
    """Fuzz; 1 if any case ended as it should not."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("subjects", nargs="*", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--cases", type=int, default=1000, help="of each; default: 1000")
    parser.add_argument("--first", type=int, default=0, help="number of the first; default: 0")
    parser.add_argument("--write-docs", action="store_true", help=f"put the figures into {PAGE}")
    arguments = parser.parse_args()
    tallies = {}
    for name in arguments.subjects or SUBJECTS:
        tallies[name] = tally = _fuzzed(name, arguments.first, arguments.cases)
        print(line(name, tally), flush=True)
        for number, outcome in tally.faults:
            print(f"  case {number}: {outcome.kind}: {outcome.told}", flush=True)
    if arguments.write_docs:
        PAGE.write_text(with_figures(PAGE.read_text("utf-8"), tallies), "utf-8")
    return 1 if any(tally.faults for tally in tallies.values()) else 0


def _fuzzed(name: str, first: int, count: int) -> Tally:
    """The cases of a subject in a process of their own, and in another one behind a crash."""
    tally, at, end = Tally(), first, first + count
    while at < end:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            at = _run_until_crash(name, at, end, Path(folder).resolve(), tally)
    return tally


def _run_until_crash(name: str, first: int, end: int, folder: Path, tally: Tally) -> int:
    """Run cases until they are done or one ends its process; the number of the next one."""
    command = [sys.executable, "-m", "tests.fuzz.campaign", name, str(first), str(end), str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "SAFE_CACHE": str(folder / "cache")}
    begun = None
    with (
        (folder / "stderr.txt").open("w+") as said,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for text in process.stdout:
            number, outcome = json.loads(text)
            begun = number if outcome is None else None
            if outcome is not None:
                tally.add(number, Outcome(**outcome))
        code = process.wait()
        said.seek(0)
        last = "".join(said.readlines()[-30:])
    if begun is None and code == 0:
        return end
    if begun is None:
        raise SystemExit(f"{name} cannot be fuzzed: exit code {code}\n{last}")
    tally.add(begun, Outcome("crash", f"exit code {code}: {last[-600:]}"))
    return begun + 1


if __name__ == "__main__":
    sys.exit(main())
