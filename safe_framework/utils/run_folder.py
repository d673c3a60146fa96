"""Where a run's folder keeps its adapter and its recipe, whichever of the two folders is named."""

from __future__ import annotations

import json
from pathlib import Path

from safe_framework.errors import DataError

ADAPTER, STATE = "adapter", "run.json"
"""In a run's folder: the folder of its adapter, and the file that says what it is a run of."""

ADAPTER_CONFIG = "adapter_config.json"
"""The file by which an adapter's folder is known."""


def adapter_in(folder: str | Path) -> Path:
    """An adapter's folder: the one that is named, or that of the run that is.

    >>> adapter_in("no/such/folder")
    PosixPath('no/such/folder')
    """
    inner = Path(folder) / ADAPTER
    return inner if (inner / ADAPTER_CONFIG).is_file() else Path(folder)


def run_of(folder: str | Path) -> Path:
    """A run's folder: the one that is named, or that of the adapter that is."""
    named = Path(folder)
    return named.absolute().parent if (named / ADAPTER_CONFIG).is_file() else named


def recipe_of(source: str) -> tuple[str, Path | None]:
    """A recipe, or that of the run or adapter whose folder is named, and then the run's folder.

    Raises:
        DataError: a folder is no run's, or its recipe is no longer where it was.
    """
    if not Path(source).is_dir():
        return source, None
    folder = run_of(source)
    if not (folder / STATE).is_file():
        raise DataError(
            f"`{source}` is a folder, and no run's: it has no `{STATE}`",
            hint="name a recipe's file, or the folder that `safe run` wrote",
        )
    try:
        named = Path(json.loads((folder / STATE).read_text("utf-8"))["source"])
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"`{folder / STATE}` does not name a recipe") from error
    if not named.is_file():
        raise DataError(
            f"`{named}`, the recipe of `{folder}`, is no longer there",
            hint="name the recipe's file where it is now",
        )
    return str(named), folder
