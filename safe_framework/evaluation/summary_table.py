"""An evaluation as a Rich table: three numbers first, then the details."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from safe_framework.evaluation.results import Evaluation
from safe_framework.evaluation.summary import Headline, Section, headlines, sections

_MARKS = {True: Text("✓", "green"), False: Text("✗", "bold red"), None: Text("")}


def table(evaluation: Evaluation, targets: Mapping[str, float] | None = None) -> Group:
    """What to print: gain, off and keeps, and below them every result with its interval.

    Args:
        evaluation: what was measured.
        targets: least values of ``accuracy``, ``over_base``, ``over_shuffled`` or
            ``agreement``, to be marked met or not.

    Raises:
        DataError: a target is unknown.
    """
    return Group(_headlines(headlines(evaluation)), _details(sections(evaluation, targets)))


def _headlines(three: tuple[Headline, ...]) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in three:
        grid.add_column(ratio=1)
    grid.add_row(*map(_panel, three))
    return grid


def _panel(headline: Headline) -> Panel:
    lines = (
        Text(headline.number, "bold cyan", justify="center"),
        Text(headline.meaning, justify="center"),
        Text(headline.context, "dim", justify="center"),
    )
    return Panel(Group(*lines), title=headline.name, padding=(0, 1))


def _details(groups: tuple[Section, ...]) -> Table:
    details = Table(box=SIMPLE_HEAD, pad_edge=False)
    details.add_column("", no_wrap=True)
    details.add_column("result", justify="right", no_wrap=True)
    details.add_column("95 % interval", justify="right", no_wrap=True)
    details.add_column("", no_wrap=True)  # met or not
    details.add_column("", style="dim")
    for group in groups:
        details.add_row(Text(group.title, "bold"))
        for row in group.rows:
            name, value, interval = map(Text, (f"  {row.name}", row.value, row.interval))
            details.add_row(name, value, interval, _MARKS[row.met], Text(row.note))
        details.add_section()
    return details
