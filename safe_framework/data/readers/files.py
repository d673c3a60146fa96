"""CSV and TSV: a first line of names, then one row a record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from safe_framework.data.readers.row import Row, utf8
from safe_framework.errors import DataError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def rows(path: Path) -> Iterator[Row]:
    """The rows of the file, by the names in its first line; an empty cell is absent.

    Raises:
        DataError: a name in the first line is empty or stands there twice.
    """
    lines = csv.reader(
        io.StringIO(utf8(path), newline=""), delimiter=_SEPARATORS[path.suffix.lower()], strict=True
    )
    names = next(lines, [])
    if len(set(names)) != len(names) or "" in names:
        raise DataError(
            f"{path.name}:1: the first line must name every column once, not {names}",
            hint="write a first line such as `audio,question,answer`",
        )
    first = lines.line_num + 1  # a quoted cell may span lines: a row is where it begins
    while True:
        place = f"{path.name}:{first}"
        try:
            cells = next(lines, None)
        except csv.Error as error:
            yield Row(place, path.parent, error=DataError(f"{place}: not CSV: {error}"))
            return
        if cells is None:
            return
        if cells:
            yield _row(path, place, names, cells)
        first = lines.line_num + 1


def _row(path: Path, place: str, names: list[str], cells: list[str]) -> Row:
    if len(cells) != len(names):
        problem = DataError(
            f"{place}: the row has {len(cells)} cells, the first line names {len(names)}",
            hint='put a cell that holds the separator in quotes: "a, b"',
        )
        return Row(place, path.parent, error=problem)
    return Row(place, path.parent, {n: c or None for n, c in zip(names, cells, strict=True)})
