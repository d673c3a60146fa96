"""Pictures of a row, for the base's own image processor."""

from __future__ import annotations

import hashlib
import io
from functools import cached_property
from pathlib import Path
from typing import Any

from safe_framework.errors import DataError
from safe_framework.utils.optional_imports import require

_WHY = "pictures need Pillow"


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
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three
            raise DataError(
                f"the picture `{self.name}` cannot be read: {error}", hint="convert it to PNG"
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)
