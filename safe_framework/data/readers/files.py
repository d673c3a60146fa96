"""Files of rows: CSV and TSV, JSON lines, and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from safe_framework.data.readers.row import Row, utf8
from safe_framework.errors import DataError
from safe_framework.utils.optional_imports import require

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def separated_rows(path: Path) -> Iterator[Row]:
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
            yield _separated_row(path, place, names, cells)
        first = lines.line_num + 1


def _separated_row(path: Path, place: str, names: list[str], cells: list[str]) -> Row:
    if len(cells) != len(names):
        problem = DataError(
            f"{place}: the row has {len(cells)} cells, the first line names {len(names)}",
            hint='put a cell that holds the separator in quotes: "a, b"',
        )
        return Row(place, path.parent, error=problem)
    return Row(place, path.parent, {n: c or None for n, c in zip(names, cells, strict=True)})


def jsonl_rows(path: Path) -> Iterator[Row]:
    """The rows of the file; empty lines are none, but are counted."""
    for number, line in enumerate(utf8(path).split("\n"), start=1):
        if line.strip():
            yield _jsonl_row(path, f"{path.name}:{number}", line)


def _jsonl_row(path: Path, place: str, line: str) -> Row:
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


_BATCH = 64  # rows may hold whole recordings


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of the file, numbered from 1.

    Raises:
        DataError: it is no Parquet file, or pyarrow is not installed.
    """
    parquet = require("pyarrow.parquet", "data", "Parquet files need pyarrow")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}:{number}", path.parent, values)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"the data file `{path}` cannot be read as Parquet: {error}") from error
