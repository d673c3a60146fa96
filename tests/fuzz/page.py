"""The figures of a fuzzing as ``docs/reliability.md`` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.fuzz.campaign import Tally
from tests.fuzz.guard import MOST_SECONDS

PAGE = Path("docs/reliability.md")
_START, _END = "<!-- figures -->\n", "<!-- /figures -->"


def line(name: str, tally: Tally) -> str:
    """What came of one kind of input, for the terminal."""
    count = sum(tally.kinds.values())
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(tally.kinds.items()))
    took = f"slowest {tally.slowest:.2f} s, {tally.memory >> 20} MiB in all"
    return f"{name}: {count} cases: {kinds}; {took}"


def with_figures(page: str, tallies: Mapping[str, Tally]) -> str:
    """The page with a table of these figures.

    Raises:
        ValueError: the page has no place for it.
    """
    before, found, rest = page.partition(_START)
    _, closed, after = rest.partition(_END)
    if not found or not closed:
        raise ValueError("the page has no place for the figures")
    return f"{before}{_START}{_table(tallies)}{_END}{after}"


def _table(tallies: Mapping[str, Tally]) -> str:
    rows = [
        "| input | mutations | read all the same | refused by name | faults | slowest | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, tally in tallies.items():
        count = sum(tally.kinds.values())
        slowest = "under 0.1 s" if tally.slowest < 0.1 else f"{tally.slowest:.1f} s"
        rows.append(
            f"| {name} | {count:,} | {tally.kinds['read']:,} | {tally.kinds['refused']:,} "
            f"| {len(tally.faults):,} | {slowest} | {tally.memory >> 20} MiB |"
        )
    rows.append("")
    rows.append(f"Seconds are of processor time, of which a case has {MOST_SECONDS:g}.")
    return "\n".join(rows) + "\n"
