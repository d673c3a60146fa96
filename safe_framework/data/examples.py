"""Examples of a task: a prompt, the answer, and samples of new modalities; read from JSONL."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from safe_framework.data import images
from safe_framework.encoder import Encoder
from safe_framework.errors import DataError, SafeError
from safe_framework.shapes import Sample


@attrs.frozen(eq=False)
class Example:
    """One question about samples, with its answer.

    Attributes:
        prompt: the text that the model is given.
        answer: the text that it should continue with.
        samples: by modality; a modality that the row lacks has no key.
        place: where it was read, as ``train.jsonl:12``.
        files: where each sample was read from.
    """

    prompt: str
    answer: str
    samples: Mapping[str, Sample] = attrs.field(factory=dict)
    place: str = ""
    files: Mapping[str, Path] = attrs.field(factory=dict)


def read_examples(
    path: Path, encoders: Mapping[str, Encoder], template: str = "{question}"
) -> list[Example]:
    """Examples of a JSONL file with ``question``, ``answer`` and a file name by modality.

    File names are relative to the JSONL file. Sound is resampled to the encoder's rate; any
    other modality is read from ``.npy``, from ``.npz`` with one array, or from an image file.

    Raises:
        DataError: a row lacks a field or names a file that cannot be read; the message gives
            the row's line.
    """
    return [_example(path.parent, place, row, encoders, template) for place, row in read_rows(path)]


def _example(
    folder: Path,
    place: str,
    row: Mapping[str, Any],
    encoders: Mapping[str, Encoder],
    template: str,
) -> Example:
    files = {
        name: folder / _file_name(row[name], name, place)
        for name in encoders
        if row.get(name) is not None
    }
    return Example(
        prompt=template.replace("{question}", _text(row, "question", place)),
        answer=_text(row, "answer", place),
        samples={name: _read_sample(file, encoders[name], place) for name, file in files.items()},
        place=place,
        files=files,
    )


def read_texts(path: Path, template: str = "{question}") -> list[str]:
    """The ``text`` of every row of a JSONL file, or its ``question`` in the template.

    Raises:
        DataError: a row has none; the message gives its line.
    """
    return [
        template.replace("{question}", _text(row, "question", place))
        if "question" in row
        else _text(row, "text", place)
        for place, row in read_rows(path)
    ]


def read_samples(path: Path, modality: str, encoder: Encoder) -> list[Sample]:
    """The sample of every row of a JSONL file that names one for ``modality``.

    Raises:
        DataError: no row names one, or one cannot be read; the message gives the row's line.
    """
    samples = [
        _read_sample(path.parent / _file_name(row[modality], modality, place), encoder, place)
        for place, row in read_rows(path)
        if row.get(modality) is not None
    ]
    if not samples:
        raise DataError(
            f"no row of `{path}` has a `{modality}`",
            hint=f"add a field `{modality}` that names a file",
        )
    return samples


def read_rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows of a JSONL file with the place of each, as ``train.jsonl:12``.

    Raises:
        DataError: the file is missing, empty, or a line is not a JSON object.
    """
    if not path.is_file():
        raise DataError(f"the data file `{path}` does not exist")
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"the data file `{path}` has no rows")
    return rows


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_content(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}:{error.colno}: not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise DataError(f"{place}: a row must be a JSON object, not {type(row).__name__}")
        yield place, row


def _content(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the data file `{path}` is not UTF-8: {error.reason} at byte {error.start}"
        ) from error


def _text(row: Mapping[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{place}: `{field}` must be a text that is not empty, not {value!r}",
            hint=f"its fields are: {', '.join(row)}",
        )
    return value


def _file_name(value: object, name: str, place: str) -> str:
    if not isinstance(value, str) or not value:
        raise DataError(f"{place}: `{name}` must be the name of a file, not {value!r}")
    return value


def _read_sample(path: Path, encoder: Encoder, place: str) -> Sample:
    from safe_framework.data.audio import read_audio

    try:
        if encoder.sampling_rate is not None:
            return read_audio(path, encoder.sampling_rate)
        return read_array(path)
    except SafeError as error:
        raise DataError(f"{place}: {error.message}", hint=error.hint) from error


def read_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array that a file holds: ``.npy``, ``.npz`` with one array, or an image.

    Raises:
        DataError: the file is missing, of another kind, broken, or holds several arrays.
    """
    suffix = Path(path).suffix.lower()
    if suffix in images.SUFFIXES:
        return images.read_image(path)
    if suffix not in (".npy", ".npz"):
        raise DataError(
            f"`{path}` is no file that arrays are read from",
            hint=f"save it as .npy, .npz or an image: {', '.join(sorted(images.SUFFIXES))}",
        )
    if not Path(path).is_file():
        raise DataError(f"the file `{path}` does not exist")
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found as arrays:
            names = list(arrays)
            if len(names) == 1:
                return np.asarray(arrays[names[0]])
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"`{path}` cannot be read as an array: {error}", hint="save it by numpy.save"
        ) from error
    raise DataError(
        f"`{path}` holds {len(names)} arrays, a sample is one", hint="save one array in each file"
    )


def distinct(values: Sequence[str]) -> list[str]:
    """The values without repeats, in the order in which they first appear."""
    return list(dict.fromkeys(values))
