"""Files of rows: CSV and TSV, JSON lines, and Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from safe_framework.data.readers.row import Row, utf8
from safe_framework.errors import DataError
from safe_framework.utils.optional_imports import require

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_ENDINGS = {",": ", or call the file .csv", "\t": ", or call the file .tsv"}
_MET = ",;\t|"
"""What programs separate cells by."""


def separated_rows(path: Path) -> Iterator[Row]:
    """The rows of the file, by the names in its first line; an empty cell is absent.

    A row that is not CSV costs that row alone, and a quote that is never closed its line alone.

    Raises:
        DataError: a name in the first line is empty, stands there twice, or is all names at once.
    """
    separator = _SEPARATORS[path.suffix.lower()]
    records = _records(utf8(path), separator)
    _, names = next(records, (1, []))
    if isinstance(names, str) or len(set(names)) != len(names) or "" in names:
        raise DataError(
            f"{path.name}:1: the first line must name every column once, not {names}",
            hint="write a first line such as `audio,question,answer`",
        )
    others = _MET.replace(separator, "")
    if len(names) == 1 and (other := next((one for one in others if one in names[0]), None)):
        raise DataError(
            f"{path.name}:1: the first line names one column, `{names[0]}`",
            hint=f"separate cells by {separator!r}, not by {other!r}{_ENDINGS.get(other, '')}",
        )
    for number, cells in records:
        place = f"{path.name}:{number}"
        if isinstance(cells, str):
            hint = 'put the cell in quotes and write each quote in it twice: "a ""b"" c"'
            problem = DataError(f"{place}: not CSV: {cells}", hint=hint)
            yield Row(place, path.parent, error=problem)
        elif cells:
            yield _separated_row(path, place, names, cells)


def _records(text: str, separator: str) -> Iterator[tuple[int, list[str] | str]]:
    """The cells of each record, or why it has none, and the number of its first line."""
    lines = io.StringIO(text, newline="").readlines()
    at = 0
    while at < len(lines):
        end = _end_of_record(lines, at, separator)
        if end is None:
            yield at + 1, "a quote is opened and not closed"
            at += 1
            continue
        record = lines[at:end]
        if (longest := sum(map(len, record))) > csv.field_size_limit():
            csv.field_size_limit(longest)  # the module's own is there to save memory
        try:
            yield at + 1, next(csv.reader(record, delimiter=separator, strict=True), [])
        except csv.Error as error:
            yield at + 1, str(error)
        at = end


def _end_of_record(lines: Sequence[str], at: int, separator: str) -> int | None:
    """The line behind the record that begins with a line; None if a quote stays open.

    A record whose quotes are wrong ends with its first line.
    """
    inside = False
    for end in range(at, len(lines)):
        line = lines[end].rstrip("\r\n")
        place = 0
        while place <= len(line):
            if not inside and not line.startswith('"', place):  # a cell without quotes
                following = line.find(separator, place)
                if following < 0:
                    return end + 1
                place = following + 1
                continue
            place = _behind_quotes(line, place if inside else place + 1)
            inside = place < 0
            if inside:
                break  # the cell goes on in the next line
            if place == len(line):
                return end + 1
            if not line.startswith(separator, place):
                return at + 1
            place += len(separator)
    return None


def _behind_quotes(line: str, place: int) -> int:
    """Where a quoted cell ends that goes on at a place; -1 if it goes on in the next line.

    >>> _behind_quotes('"a ""b"" c",d', 1), _behind_quotes('"a', 1)
    (11, -1)
    """
    while (quote := line.find('"', place)) >= 0:
        if not line.startswith('"', quote + 1):
            return quote + 1
        place = quote + 2
    return -1


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
        if _HALF_A_PAIR.search(line):
            json.dumps(values, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return _bad(path, place, DataError(f"{place}:{error.colno}: not JSON: {error.msg}"), error)
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        problem = DataError(f"{place}: `{half}` is half a character", hint="leave it out")
        return _bad(path, place, problem, error)
    except RecursionError as error:
        problem = DataError(f"{place}: it is nested too deeply", hint="leave the row out")
        return _bad(path, place, problem, error)
    except ValueError as error:  # a number with more digits than Python reads
        problem = DataError(f"{place}: a number in it is too long", hint="write it as a text")
        return _bad(path, place, problem, error)
    if not isinstance(values, dict):
        kind = type(values).__name__
        problem = DataError(f"{place}: a row must be a JSON object, not {kind}")
        return Row(place, path.parent, error=problem)
    return Row(place, path.parent, values)


_HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def _bad(path: Path, place: str, problem: DataError, cause: Exception) -> Row:
    problem.__cause__ = cause
    return Row(place, path.parent, error=problem)


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
