"""One row of a data file, wherever it was read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from safe_framework.errors import DataError


@attrs.frozen(eq=False)
class Row:
    """What one row says, or why it says nothing.

    Attributes:
        place: where it was read, as ``train.jsonl:12``; the number is what an editor shows.
        folder: what the names of files in it are relative to.
        values: its fields.
        error: why it could not be read; its ``values`` are then empty.
    """

    place: str
    folder: Path
    values: Mapping[str, Any] = attrs.field(factory=dict)
    error: DataError | None = None


def utf8(path: Path) -> str:
    """The text of a file, its line ends as they are.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the data file `{path}` is not UTF-8: {error.reason} at byte {error.start}",
            hint="save it as UTF-8",
        ) from error
