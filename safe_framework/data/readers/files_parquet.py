"""Parquet, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safe_framework.data.readers.row import Row
from safe_framework.errors import DataError
from safe_framework.utils.optional_imports_extra import needed

_BATCH = 64  # rows may hold whole recordings


def rows(path: Path) -> Iterator[Row]:
    """The rows of the file, numbered from 1.

    Raises:
        DataError: it is no Parquet file, or pyarrow is not installed.
    """
    parquet = needed("pyarrow.parquet", "Parquet files need pyarrow")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}:{number}", path.parent, values)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"the data file `{path}` cannot be read as Parquet: {error}") from error
