"""Captioned pictures: a JSONL file of names and captions, and what the image encoder sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.data.readers import read_rows
from safe_framework.errors import DataError
from safe_framework.experimental.vision_language.compose import patches
from safe_framework.utils.optional_imports import require
from safe_framework.utils.progress import WorkProgress

_AT_ONCE = 16


@attrs.frozen(eq=False)
class Captioned:
    """One picture.

    Attributes:
        caption: what is to be said of it.
        file: where it is.
        patches: what the projector is given of it, (tokens, dim), on the CPU.
    """

    caption: str
    file: Path
    patches: Tensor


def read_captioned(
    path: Path, model: Any, processor: Any, progress: WorkProgress
) -> list[Captioned]:
    """The pictures of a JSONL file of ``image`` and ``caption``, through the image encoder once.

    Raises:
        DataError: a row lacks a field, or names a picture that cannot be read.
    """
    rows = [_fields(place, row, path.parent) for place, row in read_rows(path)]
    found: list[Captioned] = []
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        seen = _see(model, processor, [file for file, _ in some])
        found += [Captioned(text, file, one) for (file, text), one in zip(some, seen, strict=True)]
        progress(f"looking at {path.name}", len(found), len(rows))
    return found


def read_picture(file: Path) -> Any:
    """A picture on a white square, so that nothing of it is cut off.

    Raises:
        DataError: it is missing or cannot be read.
    """
    pillow = require("PIL.Image", "image", "pictures need Pillow")
    if not file.is_file():
        raise DataError(f"the picture `{file}` does not exist")
    try:
        with pillow.open(file) as opened:
            picture = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three
        raise DataError(f"the picture `{file}` cannot be read: {error}") from error
    side = max(picture.size)
    square = pillow.new("RGB", (side, side), "white")
    corner = ((side - picture.width) // 2, (side - picture.height) // 2)
    square.paste(picture, corner, picture)
    return square


def _see(model: Any, processor: Any, files: Sequence[Path]) -> Tensor:
    pictures = [read_picture(file) for file in files]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    tower = model.model.vision_tower
    with torch.no_grad():
        return patches(model, pixels.to(tower.device, tower.dtype)).cpu()  # all of them are kept


def _fields(place: str, row: Mapping[str, Any], folder: Path) -> tuple[Path, str]:
    for field in ("image", "caption"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise DataError(f"{place}: `{field}` must be a text")
    return folder / row["image"], row["caption"].strip()
