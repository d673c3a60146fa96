"""Checkpoints that a kill at any moment cannot spoil: a marker is written last."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

_COMPLETE = "complete"


def mark_complete(checkpoint: Path) -> None:
    """Say that everything in the folder has been written."""
    (checkpoint / _COMPLETE).touch()


def latest_complete(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole; broken ones are removed."""
    whole = {}
    for checkpoint in folder.glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
        if step is None or not checkpoint.is_dir():
            continue
        if (checkpoint / _COMPLETE).exists():
            whole[int(step[1])] = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return whole[max(whole)] if whole else None
