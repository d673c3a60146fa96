"""Pictures of a row, for the base's own image processor."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from safe_framework.data.readers import Row
from safe_framework.errors import DataError
from safe_framework.utils.optional_imports import require

_WHY = "pictures need Pillow"
FIELDS = ("image", "images")
"""The fields of a row that hold its pictures, where no modality is called so."""


class Picture:
    """A picture that is opened when it is needed, so that a data set of them takes no memory.

    Two pictures are equal when their content is.

    Args:
        source: a file, the content of one, or a Pillow image.
        name: what messages call it; by default the file's name.
    """

    def __init__(self, source: Path | bytes | Any, name: str = "") -> None:
        self.source = source
        self.name = name or (str(source) if isinstance(source, Path) else "the picture in the row")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file's bytes, or of a Pillow image's size and pixels.

        Raises:
            DataError: the file is missing.
        """
        if isinstance(self.source, Path):
            if not self.source.is_file():
                raise DataError(f"the picture `{self.name}` does not exist")
            with self.source.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        image = self.open()
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()

    def open(self) -> Any:
        """The picture as a Pillow image in RGB, turned as its EXIF data say.

        Raises:
            DataError: it is missing or cannot be read, or Pillow is not installed.
        """
        pillow = require("PIL.Image", "image", _WHY)
        turn = require("PIL.ImageOps", "image", _WHY).exif_transpose
        if isinstance(self.source, pillow.Image):
            return turn(self.source).convert("RGB")
        if isinstance(self.source, Path) and not self.source.is_file():
            raise DataError(f"the picture `{self.name}` does not exist")
        content = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        try:
            with pillow.open(content) as opened:
                return turn(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            raise DataError(
                f"the picture `{self.name}` cannot be read: {error}", hint="convert it to PNG"
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def pictures_of(row: Row, modalities: Collection[str] = ()) -> tuple[Picture, ...]:
    """The pictures that a row has for the base, in order: of ``image``, or of ``images``.

    Each is the name of a file, relative to the row's own file; or a Pillow image, the bytes of a
    file, or ``{"path": ...}`` or ``{"bytes": ...}``, as the library ``datasets`` gives them.

    Args:
        row: that may have some.
        modalities: of the recipe; a field that is called as one of them is that modality's.

    Raises:
        DataError: a field holds something else, the row has both fields, or a file is missing.
    """
    held = {
        name: row.values[name]
        for name in FIELDS
        if name not in modalities and row.values.get(name) is not None
    }
    if len(held) > 1:
        raise DataError(
            f"{row.place}: it has both `image` and `images`", hint="put all of them into `images`"
        )
    for name, value in held.items():
        return tuple(_picture(one, name, row) for one in _several(value, name, row))
    return ()


def _several(value: Any, name: str, row: Row) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a table
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{row.place}: `{name}` begins as a list and is none: {error.msg}",
                hint='write `["a.png", "b.png"]`, or one name without brackets',
            ) from error
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _picture(value: Any, name: str, row: Row) -> Picture:
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, (str, os.PathLike)) and os.fspath(value):
        file = row.folder / os.fspath(value)
        if not file.is_file():
            raise DataError(
                f"{row.place}: `{name}`: the picture `{file}` does not exist",
                hint="correct its name: it is relative to the file of rows",
            )
        return Picture(file)
    if isinstance(value, (bytes, bytearray)):
        return Picture(bytes(value), f"the `{name}` of {row.place}")
    if value is not None and type(value).__module__.partition(".")[0] == "PIL":
        return Picture(value, f"the `{name}` of {row.place}")
    raise DataError(
        f"{row.place}: `{name}` must be the name of a picture, not {value!r:.80}",
        hint="give a file's name, its bytes, a Pillow image, or a list of these",
    )
