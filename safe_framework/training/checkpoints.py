"""Checkpoints that a kill at any moment cannot spoil: a marker is written last.

They are no public format: a version that lays them out in another way refuses them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from safe_framework.errors import DataError
from safe_framework.files import write_whole

FORMAT = 1
_COMPLETE = "complete"


def mark_complete(checkpoint: Path) -> None:
    """Say that everything in the folder has been written, and in which format."""
    write_whole(checkpoint / _COMPLETE, f"{FORMAT}\n".encode())


def latest_complete(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole; broken ones are removed.

    Raises:
        DataError: it is of another format.
    """
    whole = {}
    for checkpoint in folder.glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
        if step is None or not checkpoint.is_dir():
            continue
        if (checkpoint / _COMPLETE).exists():
            whole[int(step[1])] = checkpoint
        else:
            shutil.rmtree(checkpoint)
    if not whole:
        return None
    newest = whole[max(whole)]
    _refuse_other_formats(newest)
    return newest


def _refuse_other_formats(checkpoint: Path) -> None:
    found = (checkpoint / _COMPLETE).read_text("utf-8").strip()
    if found != str(FORMAT):
        written = f"has checkpoint format {found}" if found else "names no checkpoint format"
        raise DataError(
            f"`{checkpoint}` {written}, this version resumes from {FORMAT}",
            hint="start anew with --no-resume",
        )
