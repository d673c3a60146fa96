"""Rows of the speed table: what was compared, what came out, and what is asked of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from rich.table import Table
from speed_turns import Compared, spread

MARKS = ("<!-- speed -->", "<!-- /speed -->")


@attrs.frozen
class Row:
    """One line of the table.

    Attributes:
        what: was measured.
        against: what it is compared with; empty where it stands alone.
        value: the median.
        low: lower quartile, or the least of a few.
        high: upper quartile, or the most of a few.
        unit: of the three: ``"x"`` for a ratio, ``"s"``, ``"MiB"``, or a word for a count.
        least: ratio of the fastest rounds; None where the value is no ratio of times.
        seconds: median of what was measured, where the value is a ratio of times.
        rounds: behind the value.
        most: the target, which the value should not exceed; None without one.
    """

    what: str
    against: str
    value: float
    low: float
    high: float
    unit: str = "x"
    least: float | None = None
    seconds: float | None = None
    rounds: int = 1
    most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.most is None else self.value <= self.most

    def cells(self) -> tuple[str, ...]:
        """As the table shows them, in the order of its columns."""
        value = _number(self.value, self.unit)
        between = "" if self.rounds == 1 else f"{_plain(self.low)} to {_plain(self.high)}"
        time = "" if self.seconds is None else _time(self.seconds)
        target = "" if self.most is None else f"at most {_number(self.most, self.unit)}"
        if self.met is False:
            target += ", missed"
        least = "" if self.least is None else _plain(self.least)
        return self.what, self.against, value, between, least, time, target


def ratio(what: str, against: str, compared: Compared, most: float | None = None) -> Row:
    """A row of two arms that took turns."""
    return Row(
        what, against, compared.ratio, compared.low, compared.high,
        least=compared.least, seconds=compared.seconds, rounds=compared.rounds, most=most,
    )  # fmt: skip


def amount(what: str, values: Sequence[float], unit: str, most: float | None = None) -> Row:
    """A row of one arm alone."""
    low, high = spread(values)
    return Row(what, "", statistics.median(values), low, high, unit, rounds=len(values), most=most)


_HEADS = ("what", "against", "median", "spread", "least", "time", "target")


def shown(title: str, rows: Sequence[Row]) -> Table:
    """The rows of one group."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(_HEADS):
        table.add_column(name, justify="left" if index in (0, 1, 6) else "right")
    for row in rows:
        table.add_row(*row.cells(), style="bold red" if row.met is False else None)
    return table


def page(result: Mapping[str, Any], marks: tuple[str, str] = MARKS) -> str:
    """The tables and the machine as a block of Markdown, between its two marks."""
    lines = [marks[0], _machine_line(result), ""]
    for title, rows in result["groups"].items():
        lines += [f"**{title}**", "", f"| {' | '.join(_HEADS)} |", "|---|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(Row(**row).cells())} |" for row in rows]
        lines.append("")
    return "\n".join([*lines, marks[1]])


def replaced(document: str, block: str, marks: tuple[str, str] = MARKS) -> str:
    """The document with another block between the marks.

    Raises:
        ValueError: the document lacks one of the marks.
    """
    begin, end = marks
    if begin not in document or end not in document:
        raise ValueError(f"the page has no block between `{begin}` and `{end}`")
    before, after = document.split(begin)[0], document.split(end)[-1]
    return before + block + after


def _machine_line(result: Mapping[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    load = " to ".join(f"{value:.1f}" for value in machine["load"])
    gpu = f"{machine['gpu']}; " if machine.get("gpu") else ""
    return (
        f"{gpu}{machine['cores']} cores, {machine['threads']} threads of torch, "
        f"{machine['processor']}; {named}; the machine's load average before and after: {load}."
    )


def _number(value: float, unit: str) -> str:
    return _plain(value) if unit == "x" else f"{_plain(value)} {unit}"


def _plain(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
