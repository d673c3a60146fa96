"""Rows of data, one module for each kind of file.

A reader is a function from where the data are to an iterator of :class:`Row`: it reads as it is
asked, and gives a row that cannot be read with the reason instead of stopping at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from safe_framework.config import schema
from safe_framework.data.readers import archives, datasets, files
from safe_framework.data.readers.archives import is_archive
from safe_framework.data.readers.memory import MemoryRows
from safe_framework.data.readers.row import Row
from safe_framework.errors import DataError
from safe_framework.utils.in_memory import MEMORY, was_in_memory

__all__ = ["MemoryRows", "Row", "Source", "is_archive", "is_dataset", "iterate_rows", "read_rows"]

Source = Path | str | MemoryRows
"""A file, a folder, an archive, ``hf:owner/name:split``, or rows in memory."""

READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": files.jsonl_rows,
    ".csv": files.separated_rows,
    ".tsv": files.separated_rows,
    ".parquet": files.parquet_rows,
}
"""The reader of a file by its ending."""


def is_dataset(source: Source) -> bool:
    """Whether the source names a dataset of the hub, and no file."""
    return isinstance(source, str) and schema.is_dataset(source)


def iterate_rows(source: Source) -> Iterator[Row]:
    """The rows of any source, one after the other; those that cannot be read have an ``error``.

    Raises:
        DataError: the source is missing, of an unknown kind, or cannot be read at all.
    """
    if isinstance(source, MemoryRows):
        return iter(source)
    if isinstance(source, str) and is_dataset(source):
        return datasets.hub_rows(source)
    if isinstance(source, str) and was_in_memory(source):
        name = source.removeprefix(MEMORY)
        raise DataError(
            f"the rows of `{name}` were in memory, and are not at hand",
            hint="give them again in Python: `safe_framework.train` and `safe_framework.evaluate`",
        )
    path = Path(source)
    if path.is_dir():
        if shards := archives.shards_in(path, READERS):
            return chain.from_iterable(archives.archive_rows(one, READERS) for one in shards)
        return datasets.folder_rows(path, READERS)
    if not path.is_file():
        raise DataError(f"the data file `{path}` does not exist")
    if is_archive(path):
        return archives.archive_rows(path, READERS)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"`{path}` is no kind of data file that is known",
            hint=f"use {', '.join(READERS)}, a folder, a .zip or .tar, or `hf:owner/name:split`",
        )
    return reader(path)


def read_rows(source: Source) -> list[tuple[str, Mapping[str, Any]]]:
    """All rows of a source with the place of each, as ``train.jsonl:12``.

    Raises:
        DataError: the source is missing or has no rows, or a row cannot be read.
    """
    found = []
    for row in iterate_rows(source):
        if row.error is not None:
            raise row.error
        found.append((row.place, row.values))
    if not found:
        raise no_rows(source)
    return found


def no_rows(source: Source) -> DataError:
    """The error that a source has nothing in it."""
    what = "" if isinstance(source, MemoryRows) else "the data file "
    return DataError(f"{what}`{source}` has no rows")
