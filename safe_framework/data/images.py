"""Image files as arrays."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from safe_framework.data.unread import first_bytes, missing_file, what_it_is
from safe_framework.errors import DataError
from safe_framework.utils.optional_imports import require

_WHY = "image files need Pillow"
_NUMBERS = {"1", "L", "F"}  # Pillow's modes of one channel; those of whole numbers begin with I


def read_image(source: str | os.PathLike[str] | Any) -> npt.NDArray[Any]:
    """An image's pixels: colours (height, width, 3), or (height, width) where it has no colours.

    Transparency is dropped. 16-bit greys, as depth cameras write them, keep their numbers.

    Args:
        source: a file, the content of one, or an image that Pillow has opened.

    Raises:
        DataError: the file is missing or cannot be read, or Pillow is not installed.
    """
    if isinstance(source, bytes):
        return _opened(io.BytesIO(source), "the image in the row")
    if not isinstance(source, (str, os.PathLike)):
        return _pixels(source)
    path = Path(source)
    if not os.path.isfile(path):
        raise missing_file(path, f"the image `{path}`")
    return _opened(path, f"the image `{path}`")


def _opened(file: Path | io.BytesIO, called: str) -> npt.NDArray[Any]:
    pillow = require("PIL.Image", "image", _WHY)
    try:
        with pillow.open(file) as image:
            return _pixels(image)
    except pillow.DecompressionBombError as error:
        raise DataError(f"{called} is too large: {error}", hint="make it smaller") from error
    except Exception as error:  # a decoder may raise anything at broken bytes
        instead = what_it_is(first_bytes(file) if isinstance(file, Path) else file.getvalue())
        why, hint = instead or (error, "convert it to PNG")
        raise DataError(f"{called} cannot be read: {why}", hint=hint) from error


def _pixels(image: Any) -> npt.NDArray[Any]:
    if not isinstance(image, require("PIL.Image", "image", _WHY).Image):
        raise DataError(
            f"a {type(image).__name__} is no image",
            hint="give an array, a Pillow image or the name of a file",
        )
    if image.mode == "1":
        image = image.convert("L")
    plain = image.mode in _NUMBERS or image.mode.startswith("I")
    return np.asarray(image if plain else image.convert("RGB"))
