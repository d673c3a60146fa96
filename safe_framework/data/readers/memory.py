"""Rows that are in memory: a list, a generator, an object of ``datasets``, a dataset of torch."""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from safe_framework.data.readers.datasets import dataset_rows
from safe_framework.data.readers.row import Row
from safe_framework.errors import DataError
from safe_framework.utils.optional_imports import require

_ROWS = 'give dicts, such as {"audio": ..., "question": ..., "answer": ...}'
_TABLES = {
    "to_dicts": "to_dicts()", "to_pylist": "to_pylist()", "to_dict": 'to_dict("records")'
}  # fmt: skip
"""How tables of other libraries (Polars, Arrow, pandas) give their rows, by a method of theirs."""


class MemoryRows:
    """Rows of an object, each a mapping as a line of a data file would be.

    They are read anew whenever they are asked for, and sounds and pictures of ``datasets`` as they
    lie there, undecoded. What can be iterated only once is kept.

    Args:
        source: a sequence or an iterable of mappings, a generator function without arguments, a
            ``datasets.Dataset`` or ``IterableDataset``, or a dataset of torch with a length. It
            must have an end.
        name: what messages call it, such as ``"train"``.

    Raises:
        DataError: it is none of these.
    """

    def __init__(self, source: Any, name: str) -> None:
        self.name = name
        self._source = _checked(source, name)
        if isinstance(self._source, Iterator):
            self._source = list(self._source)

    def __str__(self) -> str:
        return self.name

    def __iter__(self) -> Iterator[Row]:
        """The rows; one that is no mapping has an ``error``."""
        folder = Path.cwd()
        if _is_of_datasets(self._source):
            datasets = require("datasets", "data", "an object of `datasets` needs the library")
            found = dataset_rows(datasets, _unformatted(self._source), self.name, folder, 0, None)
            for number, row in enumerate(found):
                values = {key: _plain(one) for key, one in row.values.items()}
                yield attrs.evolve(row, place=f"{self.name}[{number}]", values=values)
            return
        for number, values in enumerate(_each(self._source)):
            place = f"{self.name}[{number}]"
            if isinstance(values, Mapping):
                yield Row(place, folder, {str(key): _plain(one) for key, one in values.items()})
            else:
                message = f"{place}: a row must be a mapping, not a `{type(values).__name__}`"
                yield Row(place, folder, error=DataError(message, hint=_ROWS))

    def digest(self) -> str:
        """SHA-256 of what the rows hold; of the files that they name, the names alone."""
        digest = hashlib.sha256()
        for row in self:
            _add(digest.update, row.values)
        return digest.hexdigest()


def _is_of_datasets(source: Any) -> bool:
    of_it = type(source).__module__.partition(".")[0] == "datasets"
    return of_it and hasattr(source, "features") and hasattr(source, "with_format")


def _unformatted(source: Any) -> Any:
    """An object of ``datasets`` whose values are Python's own, unless a function makes them."""
    if not hasattr(source, "format"):  # one that is streamed, whose functions stay
        return source.with_format(None)
    chosen = source.format
    if not isinstance(chosen, Mapping) or chosen["type"] in (None, "custom"):
        return source
    return source.with_format(None).select_columns(list(chosen["columns"]))


def _checked(source: Any, name: str) -> Any:
    """The source, if rows can be had of it.

    Raises:
        DataError: they cannot.
    """
    if isinstance(source, Mapping):
        keys = ", ".join(f"`{key}`" for key in list(source)[:5])
        splits = source and all(_is_of_datasets(one) for one in source.values())
        hint = f"give one of them: {name}=found[{next(iter(source))!r}]" if splits else _ROWS
        what = "splits" if splits else "columns"
        raise DataError(f"`{name}` is a mapping of {what} ({keys}), not rows", hint=hint)
    rows = next((_TABLES[method] for method in _TABLES if hasattr(source, method)), "")
    if rows and hasattr(source, "columns"):
        raise DataError(f"`{name}` is a table of another library", hint=f"give {name}=table.{rows}")
    if inspect.isgeneratorfunction(source) or isinstance(source, Iterable):
        return source
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return source
    raise DataError(
        f"`{name}` is a `{type(source).__name__}`, of which no rows can be had", hint=_ROWS
    )


def _each(source: Any) -> Iterator[Any]:
    if inspect.isgeneratorfunction(source):
        yield from source()
    elif not hasattr(source, "__iter__"):
        for number in range(len(source)):  # a dataset of torch does not say when it ends
            yield source[number]
    else:
        yield from source


def _plain(value: Any) -> Any:
    """The value as a data file would hold it: names of files, numbers, and arrays in a mapping."""
    import numpy as np  # here, since rows of files are checked without it

    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        whole = "array" in value or "bytes" in value
        return value if whole else {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "values") and hasattr(value, "sampling_rate"):  # a Waveform
        return {"array": value.values, "sampling_rate": value.sampling_rate}
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0:
        return value.item()
    return {"array": value} if isinstance(value, np.ndarray) else value


def _add(update: Callable[[bytes], object], value: Any) -> None:
    """Feed a value to a hash, each kind and length told from the others."""
    if hasattr(value, "get_all_samples"):
        from safe_framework.data.samples import decoded

        value = decoded(value)
    if isinstance(value, Mapping):
        update(f"mapping {len(value)} ".encode())
        for key in sorted(value, key=str):
            _add(update, str(key))
            _add(update, value[key])
    elif isinstance(value, (bytes, bytearray)):
        update(f"bytes {len(value)} ".encode() + bytes(value))
    elif isinstance(value, (str, int, float, bool, type(None), os.PathLike)):
        update(f"{type(value).__name__} {value!r} ".encode("utf-8", "replace"))
    elif isinstance(value, Sequence):
        update(f"list {len(value)} ".encode())
        for item in value:
            _add(update, item)
    elif hasattr(value, "__array__"):
        import numpy as np

        array = np.asarray(value)
        update(f"array {array.dtype} {array.shape} ".encode() + array.tobytes())
    else:
        update(pickle.dumps(value))
