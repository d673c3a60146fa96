"""A folder: one that lists its files, a saved dataset, or a folder for each answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safe_framework.data.readers import datasets
from safe_framework.data.readers.row import Row
from safe_framework.errors import DataError

LIST = "metadata"
"""Name, before its ending, of the file in a folder that lists the folder's files."""


def rows(folder: Path, listed: Mapping[str, Callable[[Path], Iterator[Row]]]) -> Iterator[Row]:
    """The rows of a folder.

    If it holds a list such as ``metadata.jsonl``, they are that file's. If ``datasets`` saved it,
    they are the dataset's. Otherwise each file in a folder within is a row: ``piano/a.wav`` has
    the answer ``piano``, and its name as ``file_name``.

    Args:
        folder: to read.
        listed: the reader of a list by its ending.

    Raises:
        DataError: it has two lists, or neither a list nor folders with files.
    """
    lists = [path for ending in listed if (path := folder / f"{LIST}{ending}").is_file()]
    if len(lists) > 1:
        raise DataError(
            f"the folder `{folder}` has two lists: {', '.join(path.name for path in lists)}",
            hint="keep one of them",
        )
    if lists:
        return listed[lists[0].suffix](lists[0])
    if datasets.is_saved(folder):
        return datasets.saved_rows(folder)
    return _by_answer(folder)


def _by_answer(folder: Path) -> Iterator[Row]:
    for file in sorted(folder.glob("*/*")):
        if file.is_file() and not file.name.startswith("."):
            name = file.relative_to(folder).as_posix()
            values = {"file_name": name, "answer": file.parent.name}
            yield Row(f"{folder.name}/{name}", folder, values)
