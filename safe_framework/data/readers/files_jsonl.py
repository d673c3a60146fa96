"""JSONL: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from safe_framework.data.readers.row import Row, utf8
from safe_framework.errors import DataError


def rows(path: Path) -> Iterator[Row]:
    """The rows of the file; empty lines are none, but are counted."""
    for number, line in enumerate(utf8(path).split("\n"), start=1):
        if line.strip():
            yield _row(path, f"{path.name}:{number}", line)


def _row(path: Path, place: str, line: str) -> Row:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        problem = DataError(f"{place}:{error.colno}: not JSON: {error.msg}")
        problem.__cause__ = error
        return Row(place, path.parent, error=problem)
    if not isinstance(values, dict):
        kind = type(values).__name__
        problem = DataError(f"{place}: a row must be a JSON object, not {kind}")
        return Row(place, path.parent, error=problem)
    return Row(place, path.parent, values)
