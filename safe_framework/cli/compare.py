"""``safe compare RUN RUN``: whether one run is better than another, on the same test rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from safe_framework.evaluation.compare_runs import Aggregate, Difference


def add(commands: Any) -> None:
    """Declare the command."""
    text = "compare two runs, or two groups of seeds, row by row"
    parser = commands.add_parser("compare", help=text, description=text)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="two runs, each by its folder or its adapter's; or, with --against or beyond two, "
        "seeds of one recipe",
    )
    parser.add_argument(
        "--against", type=Path, nargs="+", metavar="RUN", default=[], help="seeds of the other"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the numbers")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import json

    import attrs

    from safe_framework.evaluation.compare_runs import compare_runs
    from safe_framework.runs.finished import read_metrics
    from safe_framework.utils.console import plain_console
    from safe_framework.utils.run_folder import run_of

    first, second = arguments.runs, arguments.against
    if len(first) == 2 and not second:
        first, second = first[:1], first[1:]
    sides = [[read_metrics(run_of(folder)) for folder in side] for side in (first, second)]
    found = compare_runs(*sides)
    names = [", ".join(map(str, side)) for side in (first, second) if side]
    console = plain_console()
    for place, name in zip("AB", names, strict=False):
        runs = len(sides["AB".index(place)])
        seeds = f" ({runs} runs: mean ± standard deviation)" if runs > 1 else ""
        console.print(f"{place}  {name}{seeds}", soft_wrap=True)
    console.print(table(found))
    for test in dict.fromkeys(row.test for row in found if row.test):
        measures = ", ".join(row.name for row in found if row.test == test)
        console.print(f"p of {measures}: {test}", soft_wrap=True)
    if arguments.json:
        rows = [attrs.asdict(row) for row in found]
        content = {"first": list(map(str, first)), "second": list(map(str, second)), "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return 0


def table(found: list[Difference]) -> Table:
    """A line for each measure."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("")
    for name in ("A", "B", "B - A", "95 %", "p"):
        shown.add_column(name, justify="right", no_wrap=name != "95 %")
    for row in found:
        shown.add_row(row.name, *_cells(row))
    return shown


def _cells(row: Difference) -> tuple[str, ...]:
    from safe_framework.utils.formatting import points

    one = _side(row.first)
    if row.second is None or row.difference is None or row.low is None or row.high is None:
        return one, "", "", "", ""
    limits = f"{100 * row.low:+.1f} to {100 * row.high:+.1f}"
    p = "" if row.p is None else f"{row.p:.2g}"
    return one, _side(row.second), points(row.difference), limits, p


def _side(found: Aggregate) -> str:
    from safe_framework.utils.formatting import percent

    if found.spread is None:
        return percent(found.value)
    return f"{percent(found.value)} ± {100 * found.spread:.1f}"
