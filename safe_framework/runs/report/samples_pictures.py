"""A sample that is seen: an image file as it is, or an array as a PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
_COLOURS = (3, 4)
_MOST = 512  # pixels on a side of an array that is drawn
_FILE = 400_000  # bytes of a file that goes into a page as it is


def picture(sample: Any, file: Path | None) -> tuple[bytes, str] | None:
    """Content and type of an image that a browser shows, or None if it is nothing to see.

    Args:
        sample: an array (height, width) of depths or greys, (height, width, 3) of colours, or
            (pictures, height, width, 3), of which the middle one is shown.
        file: where it was read.
    """
    kind = _TYPES.get(file.suffix.lower()) if file else None
    if file and kind and file.is_file() and file.stat().st_size <= _FILE:
        return file.read_bytes(), kind
    values = _plane(sample)
    return None if values is None else (_png(values), "image/png")


def _plane(sample: Any) -> Any:
    if not isinstance(sample, np.ndarray) or not sample.size or sample.dtype.kind not in "fiub":
        return None
    if sample.ndim == 4:
        sample = sample[len(sample) // 2]
    coloured = sample.ndim == 3 and sample.shape[-1] in _COLOURS
    if not coloured and (sample.ndim != 2 or min(sample.shape) < 8):
        return None
    step = max(1, -(-max(sample.shape[:2]) // _MOST))
    return sample[::step, ::step]


def _png(values: Any) -> bytes:
    from matplotlib.image import imsave

    written = io.BytesIO()
    if values.ndim == 3:
        top = 255 if values.dtype.kind in "iu" else max(float(np.nanmax(values)), 1e-9)
        imsave(written, np.clip(np.nan_to_num(values) / top, 0, 1), format="png")
    else:
        real = values[np.isfinite(values)]
        low, high = (float(real.min()), float(real.max())) if real.size else (0.0, 1.0)
        imsave(written, values, vmin=low, vmax=high, cmap="gray", format="png")
    return written.getvalue()
