"""How far long work has come: bars where somebody watches, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from safe_framework.utils.formatting import about, clock

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

ProgressCallback = Callable[[str, int, int], None]
"""Called with a label, how many are done, and of how many."""

_TENTHS = 10
_SOON = 10.0
"""Seconds after which a first line comes, where a tenth takes longer."""

_APART = 1.0
"""Seconds between two lines of one work; its last comes all the same."""

_FIXED, _LABEL, _BAR, _NARROW = 29, 30, 24, 4
"""Columns of a terminal: for spinner, counts, time left and the gaps; for a label and a bar at
most; and what is too few to show a bar or a note in."""


def no_progress(label: str, done: int, total: int, note: str = "") -> None:
    """The progress callback that shows nothing."""


class WorkProgress:
    """One bar for each label; calling it with a label says how far that work is.

    Args:
        console: where to show it; a quiet console shows nothing.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
        )
        from rich.table import Column

        self.console = console
        spare = max(console.width - _FIXED, 0)  # for the label, the bar and the note, in this order
        label, bar = min(_LABEL, spare), min(_BAR, max(spare - _LABEL, 0))
        note = max(spare - label - bar, 0)
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", markup=False, table_column=_cut(Column, label)),
            *([BarColumn(bar_width=bar)] if bar >= _NARROW else []),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False, justify="right"),
            *(
                [
                    TextColumn(
                        "{task.fields[note]}", "dim", markup=False, table_column=_cut(Column, note)
                    )
                ]
                if note >= _NARROW
                else []
            ),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._tenths: dict[str, int] = {}
        self._said: dict[str, float] = {}
        self._begun: dict[str, tuple[float, int]] = {}

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None:
        """Say that ``done`` of ``total`` are done, with a short note beside the bar."""
        self._begun.setdefault(label, (time.monotonic(), done))
        if self.console.is_terminal:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=total, note="", left="")
            self._bars.update(
                self._tasks[label],
                completed=done,
                total=total,
                note=note,
                left=self._clock(label, done, total),
            )
        elif self._is_due(label, done, total):
            left = self._time_left(label, done, total)
            line = f"{label}: {done} of {total}{left}  {note}".rstrip()
            self.console.print(line, highlight=False, markup=False)

    def _is_due(self, label: str, done: int, total: int) -> bool:
        """Whether another tenth is done, some time after the last line, or the first is late."""
        before, tenth = self._tenths.get(label), done * _TENTHS // max(total, 1)
        begun, first = self._begun[label]
        late = before is None and done > first and time.monotonic() - begun > _SOON
        if tenth <= (before or 0) and not late:
            return False
        now = time.monotonic()
        if done < total and now - self._said.get(label, begun) < _APART:
            return False  # quick work says that it is done
        self._tenths[label], self._said[label] = tenth, now
        return True

    def _time_left(self, label: str, done: int, total: int) -> str:
        """How long the rest takes, for a line; empty at the first and the last."""
        seconds = self._seconds_left(label, done, total)
        return "" if seconds is None else f", {about(seconds)} left"

    def _clock(self, label: str, done: int, total: int) -> str:
        """The same for a bar, and how long it all took once it is done."""
        if done >= total:
            return clock(time.monotonic() - self._begun[label][0])
        seconds = self._seconds_left(label, done, total)
        return "" if seconds is None else f"{clock(seconds)} left"

    def _seconds_left(self, label: str, done: int, total: int) -> float | None:
        """How long the rest takes if it goes on as it went; None where nothing went yet."""
        start, before = self._begun[label]
        if done == before or done >= total:
            return None
        return (time.monotonic() - start) / (done - before) * (total - done)

    @contextmanager
    def showing(self) -> Iterator[WorkProgress]:
        """Show the bars within the block; what is logged meanwhile appears above them."""
        written_to = sys.stderr
        with self._bars, _logs_follow(written_to):
            yield self


@contextmanager
def _logs_follow(stream: TextIO) -> Iterator[None]:
    """Within the block, log to what stands in place of a stream where that was logged to.

    Bars put a stream of their own in place of ``sys.stderr``; a handler that holds the one before,
    as that of transformers does, would write into the middle of them.
    """
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    held = [
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream
    ]
    for handler in held:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in held:
            handler.setStream(stream)


def _cut(column: Any, width: int) -> Any:
    """A column of texts that are cut at some width."""
    return column(no_wrap=True, overflow="ellipsis", max_width=width)
