"""Hugging Face ``datasets``, and folders.

A dataset is streamed from the hub or was saved in a folder; any other folder lists its files, or
holds a folder for each answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from safe_framework.data.readers.row import Row
from safe_framework.errors import DataError
from safe_framework.utils.optional_imports import require

_NAME = re.compile(
    r"hf:(?P<name>[^:@\[\]]+)(@(?P<revision>[^:\[\]]+))?(:(?P<config>[^:\[\]]+))?"
    r":(?P<split>\w+)(\[(?P<start>\d*):(?P<stop>\d*)\])?"
)
_WHY = "datasets need the library `datasets`"


def hub_rows(source: str) -> Iterator[Row]:
    """The rows of ``hf:NAME[@REVISION][:CONFIG]:SPLIT[START:STOP]``, numbered from 1.

    They are streamed: what is not asked for is not downloaded, and nothing is kept on disk.

    Raises:
        DataError: the source is written otherwise, cannot be opened, or ``datasets`` is missing.
    """
    match = _NAME.fullmatch(source)
    if match is None:
        raise DataError(
            f"`{source}` does not name a dataset",
            hint="write `hf:owner/name:train`, `hf:owner/name:config:train` or "
            "`hf:owner/name@revision:train[0:500]`",
        )
    datasets = require("datasets", "data", _WHY)
    start, stop = (int(match[key]) if match[key] else None for key in ("start", "stop"))
    label = f"{match['name'].rstrip('/').rpartition('/')[2]}:{match['split']}"
    try:
        found = datasets.load_dataset(
            match["name"],
            match["config"],
            split=match["split"],
            revision=match["revision"],
            streaming=True,
        )
        yield from dataset_rows(datasets, found, label, Path.cwd(), start or 0, stop)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise _unread(source, match["name"], error) from error


def _unread(source: str, name: str, error: Exception) -> DataError:
    """The error that a dataset cannot be read."""
    if isinstance(error, RuntimeError) and "script" in str(error):
        return DataError(
            f"the dataset `{source}` is made by a Python script, which is not run",
            hint="the hub keeps most of them converted: write "
            f"`hf:{name}@refs/convert/parquet:SPLIT`; or save it as files",
        )
    return DataError(f"the dataset `{source}` cannot be read: {error}")


_SPLITS = "dataset_dict.json"
"""The file by which a folder is known that ``DatasetDict.save_to_disk`` wrote."""


def is_saved(folder: Path) -> bool:
    """Whether ``datasets`` saved one split of a dataset in the folder."""
    return all((folder / name).is_file() for name in ("state.json", "dataset_info.json"))


def saved_rows(folder: Path) -> Iterator[Row]:
    """The rows of a dataset that ``Dataset.save_to_disk`` wrote, read as they are needed."""
    datasets = require("datasets", "data", _WHY)
    yield from dataset_rows(
        datasets, datasets.load_from_disk(str(folder)), folder.name, folder, 0, None
    )


def dataset_rows(
    datasets: Any, found: Any, label: str, folder: Path, start: int, stop: int | None
) -> Iterator[Row]:
    """The rows of an object of ``datasets``, its sounds and pictures undecoded.

    Args:
        datasets: the library.
        found: a ``Dataset`` or an ``IterableDataset``.
        label: of the rows' places.
        folder: what the names of files in them are relative to.
        start: how many to leave out first.
        stop: the first that is left out again; None for none.
    """
    names: dict[str, Any] = {}
    for column, feature in (found.features or {}).items():
        if isinstance(feature, datasets.ClassLabel):
            names[column] = feature
        elif (undecoded := _undecoded(datasets, feature)) is not None:
            found = found.cast_column(column, undecoded)  # decoded by us
    for number, values in enumerate(islice(found, start, stop), start=start + 1):
        named = {
            column: names[column].int2str(value)
            if column in names and value is not None and value >= 0
            else value
            for column, value in values.items()
        }
        yield Row(f"{label}:{number}", folder, named)


def _undecoded(datasets: Any, feature: Any) -> Any:
    """The same feature with its files as they are; None if it holds no sound and no picture."""
    if isinstance(feature, (datasets.Audio, datasets.Image)):
        return _as_files(type(feature))
    inner = getattr(feature, "feature", None)  # of a list of them
    if isinstance(inner, (datasets.Audio, datasets.Image)):
        return type(feature)(_as_files(type(inner)))
    return None


def _as_files(kind: type[Any]) -> Any:
    """A feature of sounds or pictures that neither decodes nor encodes.

    Those of ``datasets`` want torchcodec for every sound, be it the name of a file alone.
    """

    def encode_example(self: Any, value: Any) -> Any:
        """The path and the bytes of a file; read where its address is no path."""
        if isinstance(value, (str, os.PathLike)):
            value = {"path": os.fspath(value)}
        elif isinstance(value, (bytes, bytearray)):
            value = {"bytes": bytes(value)}
        if not isinstance(value, Mapping) or "array" in value:
            return kind.encode_example(self, value)
        path, content = value.get("path"), value.get("bytes")
        if content is None and path is not None and "://" in path:
            content = _content(path)
        return {"bytes": content, "path": path}

    return type(kind.__name__, (kind,), {"encode_example": encode_example})(decode=False)


def _content(address: str) -> bytes:
    """What is at an address of a dataset's own: on the hub, in an archive, or both."""
    fsspec = require("fsspec", "data", _WHY)
    with fsspec.open(address, "rb") as file:
        found: bytes = file.read()
    return found


LIST = "metadata"
"""Name, before its ending, of the file in a folder that lists the folder's files."""


def folder_rows(
    folder: Path, listed: Mapping[str, Callable[[Path], Iterator[Row]]]
) -> Iterator[Row]:
    """The rows of a folder.

    If it holds a list such as ``metadata.jsonl``, they are that file's. If ``datasets`` saved it,
    they are the dataset's. Otherwise each file in a folder within is a row: ``piano/a.wav`` has
    the answer ``piano``, and its name as ``file_name``.

    Args:
        folder: to read.
        listed: the reader of a list by its ending.

    Raises:
        DataError: it has two lists, several splits, or neither a list nor folders with files.
    """
    lists = [path for ending in listed if (path := folder / f"{LIST}{ending}").is_file()]
    if len(lists) > 1:
        raise DataError(
            f"the folder `{folder}` has two lists: {', '.join(path.name for path in lists)}",
            hint="keep one of them",
        )
    if lists:
        return listed[lists[0].suffix](lists[0])
    if is_saved(folder):
        return saved_rows(folder)
    if (folder / _SPLITS).is_file():
        saved = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_saved(path))
        named = saved[0] if saved else "train"
        raise DataError(
            f"`{folder}` holds a dataset of several splits: {', '.join(saved) or 'none'}",
            hint=f"name the folder of one of them, such as `{folder.name}/{named}`",
        )
    return _by_answer(folder)


_LITTER = frozenset(
    {"desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db", "__macosx", "$recycle.bin"}
    | {"system volume information", "lost+found", "@eadir", "__pycache__"}
)
"""What systems and programs leave in folders, in lower case; names with a dot in front aside."""

_BEGUN, _LEFT = ("~$", "#"), ("~", ".part", ".crdownload", ".download", ".tmp", ":zone.identifier")
"""How names begin and end of what is being edited or downloaded."""


def is_litter(name: str) -> bool:
    """Whether a name is that of what a file manager, a notebook or a download leaves in folders."""
    low = name.lower()
    return low.startswith((".", *_BEGUN)) or low.endswith(_LEFT) or low in _LITTER


def _by_answer(folder: Path) -> Iterator[Row]:
    for file in sorted(folder.glob("*/*")):
        if file.is_file() and not (is_litter(file.name) or is_litter(file.parent.name)):
            name = file.relative_to(folder).as_posix()
            values = {"file_name": name, "answer": file.parent.name}
            yield Row(f"{folder.name}/{name}", folder, values)
