"""Calls with a picture, for a base that does not run on text alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from safe_framework.core.layer_discovery import example_inputs
from safe_framework.core.pictures import PicturePlaces
from safe_framework.errors import SafeError
from safe_framework.pretrained.base_processor import takes_images
from safe_framework.utils.quiet import quietly

_TEXT, _SIDE = "What is this?", 64


def picture_examples(
    base: nn.Module, processor: Any, device: torch.device
) -> Iterator[Mapping[str, Any]]:
    """As many rows as :func:`example_inputs` has, each a few words about a grey picture.

    First as the base's own processor makes them, then as its config describes them.

    Args:
        base: as ``example_inputs`` wants it.
        processor: the base's own, or its tokenizer, or None.
        device: of the tensors.
    """
    words = example_inputs(base, device)
    for made in (_by_processor(processor, len(words["input_ids"])), _by_config(base, words)):
        decoder = {name: words[name] for name in ("decoder_input_ids",) if name in words}
        if made:
            yield {**{name: _moved(base, one, device) for name, one in made.items()}, **decoder}


def _moved(base: nn.Module, value: Tensor, device: torch.device) -> Tensor:
    dtype = next((p.dtype for p in base.parameters() if p.is_floating_point()), value.dtype)
    return value.to(device, dtype if value.is_floating_point() else value.dtype)


def _by_processor(processor: Any, rows: int) -> dict[str, Tensor]:
    """What the base's processor makes of a question about a grey picture."""
    if not takes_images(processor):
        return {}
    grey = np.full((_SIDE, _SIDE, 3), 128, np.uint8)
    try:
        text = PicturePlaces(processor).place(_TEXT, 1)
        with quietly():
            batch = processor(text=[text] * rows, images=[[grey]] * rows, return_tensors="pt")
    except (SafeError, ValueError, TypeError, ImportError):  # its call will say so
        return {}
    return {name: value for name, value in batch.items() if name != "labels"}


def _by_config(base: nn.Module, words: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Words behind the tokens of a picture, whose pixels are as many as the config says."""
    config: Any = base.config
    taken = inspect.signature(base.forward).parameters
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None)
    size = getattr(vision, "image_size", None)
    if "pixel_values" not in taken or size is None:
        return {}
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    ids = words["input_ids"]
    channels = getattr(vision, "num_channels", 3)
    found = {"pixel_values": torch.zeros(len(ids), channels, height, width, device=ids.device)}
    if "qformer_input_ids" in taken:
        found["qformer_input_ids"] = ids.clamp(max=config.qformer_config.vocab_size - 1)
    if "input_ids" in taken:
        found["input_ids"] = torch.cat([_picture_tokens(config, ids), ids], dim=1)
        found["attention_mask"] = torch.ones_like(found["input_ids"])
    return found


def _picture_tokens(config: Any, ids: Tensor) -> Tensor:
    """The tokens of one picture in each row, of a base whose query tokens read it."""
    names = ("image_token_id", "image_token_index")
    token = next(
        (n for n in (getattr(config, name, None) for name in names) if n is not None), None
    )
    count = getattr(config, "num_query_tokens", 0) if token is not None else 0
    return ids.new_full((len(ids), count), token or 0)
