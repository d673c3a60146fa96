"""A call with a picture, for a base that does not run on text alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from safe_framework.core.layer_discovery import example_inputs
from safe_framework.pretrained.base_processor import takes_images
from safe_framework.utils.optional_imports import require
from safe_framework.utils.quiet import quietly

_TEXT, _SIDE = "What is this?", 64


def picture_example(base: nn.Module, processor: Any, device: torch.device) -> Mapping[str, Any]:
    """As many rows as :func:`example_inputs` has, each a question about a grey picture.

    Args:
        base: as example_inputs wants it.
        processor: the base's own; nothing comes of one that takes no pictures.
        device: of the tensors.
    """
    if not takes_images(processor):
        return {}
    words = example_inputs(base, device)
    rows = len(words["input_ids"])
    pillow = require("PIL.Image", "image", "pictures need Pillow")
    pictures = [[pillow.new("RGB", (_SIDE, _SIDE), (128, 128, 128))] for _ in range(rows)]
    with quietly():  # PaliGemma's warns that it puts the picture in front
        batch = processor(text=[_TEXT] * rows, images=pictures, return_tensors="pt")
    seen = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    decoder = {name: words[name] for name in ("decoder_input_ids",) if name in words}
    return {**seen, **decoder}
