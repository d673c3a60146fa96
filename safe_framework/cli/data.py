"""``safe data check TARGET``: everything that is wrong with data, before they are trained on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from safe_framework.data.checks import DataReport

_ANSWERS = 30  # of a source, in the table of counts
_TABLE = 100  # columns of a terminal that a table of findings needs
_STYLES = {"error": "red", "warning": "yellow"}


def add(commands: Any) -> None:
    """Declare the command."""
    text = "look at data before they are trained on"
    parser = commands.add_parser("data", help=text, description=text)
    inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    text = "say everything that is wrong with data, and count them by answer; exit 1 on an error"
    check = inner.add_parser("check", help=text, description=text)
    check.add_argument(
        "target",
        metavar="TARGET",
        help="a recipe's file or name, or a run's folder; or a data file, a folder, or "
        "hf:owner/name:split",
    )
    check.add_argument("--json", action="store_true", help="print the report for a program")
    check.add_argument(
        "--longest",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="warn of longer recordings (default: 30)",
    )
    check.add_argument(
        "--rate",
        type=int,
        metavar="HERTZ",
        help="warn of recordings below it; a recipe's encoders have their own",
    )
    check.set_defaults(run=_run, loads_models=True)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.data.checks.recipe import check_target
    from safe_framework.utils.console import plain_console
    from safe_framework.utils.progress import WorkProgress
    from safe_framework.utils.run_folder import STATE, recipe_of, run_of

    target = arguments.target
    if (run_of(target) / STATE).is_file():  # any other folder holds data
        target, _ = recipe_of(target)
    console = plain_console(stderr=arguments.json)
    with WorkProgress(console).showing() as progress:
        report = check_target(
            target, longest=arguments.longest, rate=arguments.rate, progress=progress
        )
    if arguments.json:
        print(report.to_json())
    else:
        _show(console, report)
    return 1 if report.errors else 0


def _show(console: Console, report: DataReport) -> None:
    if report.findings and console.width >= _TABLE:
        console.print(_findings(report))
        console.print()
    elif report.findings:
        _print_findings(console, report)
    console.print(_counts(report))
    warnings = len(report.findings) - report.errors
    console.print(f"\n{report.errors} errors, {warnings} warnings")


def _findings(report: DataReport) -> Table:
    """A line for each finding."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("data", "row", "what", "found", "do"):
        table.add_column(heading, overflow="fold")
    for found in report.findings:
        kind = Text(found.kind, style=_STYLES[found.severity])
        cells = Text(found.message), Text(found.hint, style="dim")
        table.add_row(Text(found.data), Text(found.place), kind, *cells)
    return table


def _print_findings(console: Console, report: DataReport) -> None:
    """The same where a table would fold its cells: as errors are shown, each place whole."""
    from rich.text import Text

    for found in report.findings:
        kind = Text(found.kind, style=_STYLES[found.severity])
        said = Text.assemble(f"{found.place}: ", kind, f" in {found.data}: {found.message}")
        console.print(said, soft_wrap=True)
        console.print(f"hint: {found.hint}\n", style="dim", soft_wrap=True)


def _counts(report: DataReport) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("data", "rows", "samples", "seconds", "answers"):
        table.add_column(heading, justify="left" if heading in ("data", "answers") else "right")
    for key, one in report.counts.items():
        common = [f"{answer} {count}" for answer, count in one.answers.most_common(_ANSWERS)]
        if more := len(one.answers) - len(common):
            common.append(f"and {more} others")
        kinds = {**one.samples, **({"pictures": one.pictures} if one.pictures else {})}
        samples = ", ".join(f"{count} {name}" for name, count in kinds.items())
        seconds = f"{one.seconds:.1f}" if one.seconds else ""
        table.add_row(key, str(one.rows), Text(samples), seconds, Text(", ".join(common)))
    return table
