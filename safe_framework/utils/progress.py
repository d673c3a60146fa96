"""How far long work has come: bars where somebody watches, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from safe_framework.utils.formatting import about

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

ProgressCallback = Callable[[str, int, int], None]
"""Called with a label, how many are done, and of how many."""

_TENTHS = 10


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
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = console
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}[/]"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._tenths: dict[str, int] = {}
        self._begun: dict[str, tuple[float, int]] = {}

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None:
        """Say that ``done`` of ``total`` are done, with a short note beside the bar."""
        self._begun.setdefault(label, (time.monotonic(), done))
        if self.console.is_terminal:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=total, note=note)
            self._bars.update(self._tasks[label], completed=done, total=total, note=note)
        elif (tenth := done * _TENTHS // max(total, 1)) > self._tenths.get(label, 0):
            self._tenths[label] = tenth
            left = self._time_left(label, done, total)
            self.console.print(f"{label}: {done} of {total}{left}  {note}", highlight=False)

    def _time_left(self, label: str, done: int, total: int) -> str:
        """How long the rest takes if it goes on as it went; empty at the first and the last."""
        start, before = self._begun[label]
        if done == before or done >= total:
            return ""
        return f", {about((time.monotonic() - start) / (done - before) * (total - done))} left"

    @contextmanager
    def showing(self) -> Iterator[WorkProgress]:
        """Show the bars within the block."""
        with self._bars:
            yield self
