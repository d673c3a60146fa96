"""What happened to a run, event by event: on the screen, in a file, and for hooks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_framework.hooks import hook_manager
from safe_framework.utils.progress import WorkProgress

FILE = "monitor.jsonl"
_HELD = "journal.json"


class Journal:
    """The events of a run, in order.

    The file always holds the events of the training that led to where the run is: one that goes
    on from a checkpoint forgets what was written after it, and comes to it again.

    Args:
        path: of the file, a JSON object a line.
        progress: whose console shows a line for each event.
        writes: whether this process is the one that shows and writes.
    """

    def __init__(self, path: Path, progress: WorkProgress, *, writes: bool = True) -> None:
        self.path, self.console, self.writes = path, progress.console, writes
        self.events: list[dict[str, Any]] = []
        self._hooks = hook_manager()

    def tell(self, event: str, step: int, line: str, **facts: Any) -> None:
        """Add an event.

        Args:
            event: what kind it is.
            step: optimizer steps that had been taken.
            line: what to show.
            **facts: anything else of it that JSON can hold.
        """
        told = {"event": event, "step": step, **facts, "said": line}
        self.events.append(told)
        if not self.writes:
            return
        self._write()
        self.console.print(f"step {step}: {line}", highlight=False, markup=False, soft_wrap=True)
        self._hooks.hook.safe_training_event(event=told)

    def clear(self) -> None:
        """Remove what an earlier run left."""
        if self.writes:
            self.path.unlink(missing_ok=True)

    def keep(self, checkpoint: Path) -> None:
        """Write the events into a checkpoint."""
        (checkpoint / _HELD).write_text(json.dumps(self.events) + "\n", "utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Go on from the events of a checkpoint."""
        self.events = json.loads((checkpoint / _HELD).read_text("utf-8"))
        if self.writes:
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(json.dumps(event) + "\n" for event in self.events))


def write_whole(path: Path, text: str) -> None:
    """Rename a whole file into place, so that a kill leaves none that is half."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8")
    os.replace(part, path)


def read_events(path: Path) -> list[Mapping[str, Any]]:
    """The events of a run; none if it wrote none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
