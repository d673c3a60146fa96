"""The events of a run, shown on the screen, written to a file, and given to hooks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_framework.hooks import hook_manager
from safe_framework.utils.files import atomic_write
from safe_framework.utils.progress import WorkProgress

FILE = "monitor.jsonl"
_CHECKPOINT_FILE = "journal.json"


class EventLog:
    """The events of a run, in order.

    The file always holds the events of the training that led to the present step: a run that
    resumes from a checkpoint drops what was written after it, and logs it again.

    Args:
        path: of the file, a JSON object a line.
        progress: whose console shows a line for each event.
        writes: whether this process is the one that shows and writes.
    """

    def __init__(self, path: Path, progress: WorkProgress, *, writes: bool = True) -> None:
        self.path, self.console, self.writes = path, progress.console, writes
        self.events: list[dict[str, Any]] = []
        self._hooks = hook_manager()

    def log(self, event: str, step: int, line: str, **facts: Any) -> None:
        """Add an event.

        Args:
            event: what kind it is.
            step: optimizer steps that had been taken.
            line: what to show.
            **facts: anything else of it that JSON can hold.
        """
        entry = {"event": event, "step": step, **facts, "said": line}
        self.events.append(entry)
        if not self.writes:
            return
        self._write()
        self.console.print(f"step {step}: {line}", highlight=False, markup=False, soft_wrap=True)
        self._hooks.hook.safe_training_event(event=entry)

    def clear(self) -> None:
        """Remove what an earlier run left."""
        if self.writes:
            self.path.unlink(missing_ok=True)

    def save(self, checkpoint: Path) -> None:
        """Write the events into a checkpoint."""
        (checkpoint / _CHECKPOINT_FILE).write_text(json.dumps(self.events) + "\n", "utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Resume from the events of a checkpoint."""
        self.events = json.loads((checkpoint / _CHECKPOINT_FILE).read_text("utf-8"))
        if self.writes:
            self._write()

    def _write(self) -> None:
        atomic_write(self.path, "".join(json.dumps(event) + "\n" for event in self.events))


def read_events(path: Path) -> list[Mapping[str, Any]]:
    """The events of a run; none if it wrote none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
