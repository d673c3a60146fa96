"""Captioned pictures: a JSONL file of names and captions, and the image encoder's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.data.readers import read_rows
from safe_framework.errors import DataError
from safe_framework.experimental.vision_language.compose import image_features
from safe_framework.utils.optional_imports import require
from safe_framework.utils.progress import WorkProgress

_BATCH_SIZE = 16


@attrs.frozen(eq=False)
class CaptionedPicture:
    """One picture.

    Attributes:
        caption: its text.
        file: where it is.
        features: what enters the projector, (tokens, dim), on the CPU.
    """

    caption: str
    file: Path
    features: Tensor


def read_captioned(
    path: Path, model: Any, processor: Any, progress: WorkProgress
) -> list[CaptionedPicture]:
    """The pictures of a JSONL file of ``image`` and ``caption``, through the image encoder once.

    Raises:
        DataError: a row lacks a field, or names a picture that cannot be read.
    """
    rows = [_read_fields(location, row, path.parent) for location, row in read_rows(path)]
    found: list[CaptionedPicture] = []
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = rows[start : start + _BATCH_SIZE]
        features = _encode(model, processor, [file for file, _ in batch])
        found += [
            CaptionedPicture(text, file, one)
            for (file, text), one in zip(batch, features, strict=True)
        ]
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


def _encode(model: Any, processor: Any, files: Sequence[Path]) -> Tensor:
    pictures = [read_picture(file) for file in files]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    vision_tower = model.model.vision_tower
    pixels = pixels.to(vision_tower.device, vision_tower.dtype)
    with torch.no_grad():
        return image_features(model, pixels).cpu()  # those of all pictures are kept


def _read_fields(location: str, row: Mapping[str, Any], folder: Path) -> tuple[Path, str]:
    for field in ("image", "caption"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise DataError(f"{location}: `{field}` must be a text")
    return folder / row["image"], row["caption"].strip()
