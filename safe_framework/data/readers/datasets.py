"""Hugging Face ``datasets``: streamed from the hub, or saved in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from safe_framework.data.readers.row import Row
from safe_framework.errors import DataError
from safe_framework.utils.optional_imports_extra import needed

_NAME = re.compile(
    r"hf:(?P<name>[^:@\[\]]+)(@(?P<revision>[^:\[\]]+))?(:(?P<config>[^:\[\]]+))?"
    r":(?P<split>\w+)(\[(?P<start>\d*):(?P<stop>\d*)\])?"
)
_WHY = "datasets need the library `datasets`"


def rows(source: str) -> Iterator[Row]:
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
    datasets = needed("datasets", _WHY)
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
        yield from _rows(datasets, found, label, Path.cwd(), start or 0, stop)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the dataset `{source}` cannot be read: {error}") from error


def is_saved(folder: Path) -> bool:
    """Whether ``datasets`` saved one split of a dataset in the folder."""
    return all((folder / name).is_file() for name in ("state.json", "dataset_info.json"))


def saved_rows(folder: Path) -> Iterator[Row]:
    """The rows of a dataset that ``Dataset.save_to_disk`` wrote, read as they are needed."""
    datasets = needed("datasets", _WHY)
    yield from _rows(datasets, datasets.load_from_disk(str(folder)), folder.name, folder, 0, None)


def _rows(
    datasets: Any, found: Any, label: str, folder: Path, start: int, stop: int | None
) -> Iterator[Row]:
    names: dict[str, Any] = {}
    for column, feature in (found.features or {}).items():
        if isinstance(feature, (datasets.Audio, datasets.Image)):
            found = found.cast_column(column, type(feature)(decode=False))  # decoded by us
        elif isinstance(feature, datasets.ClassLabel):
            names[column] = feature
    for number, values in enumerate(islice(found, start, stop), start=start + 1):
        named = {
            column: names[column].int2str(value)
            if column in names and value is not None and value >= 0
            else value
            for column, value in values.items()
        }
        yield Row(f"{label}:{number}", folder, named)
