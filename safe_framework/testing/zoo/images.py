"""An image in each row's call, for the models that take one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from safe_framework.testing.zoo.sizes import IMAGE, PATCH

if TYPE_CHECKING:
    from torch import Tensor, nn

Inputs = dict[str, "Tensor"]

_IMAGE_IDS = ("image_token_id", "image_token_index", "image_patch_id", "video_token_index")
_STARTS = ("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index")
_ENDS = ("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index")
_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")


def with_image(model: nn.Module, text: Inputs) -> Iterator[Inputs]:
    """The text's inputs with an image in each row, one guess after another at its layout."""
    for layout in _layouts(model, len(next(iter(text.values())))):
        if set(layout) <= _parameters(model.forward):
            try:
                yield _placed(model, text, layout | _second_text(model, text))
            except Exception:  # a wrong guess fails in a way of its own
                continue


def _second_text(model: nn.Module, text: Inputs) -> Inputs:
    """The question once more for an image reader that reads it too, and where its words stand."""
    import torch

    wanted, ids = _parameters(model.forward), text.get("input_ids")
    found = {"qformer_input_ids": ids, "bbox": torch.zeros(2, 6, 4, dtype=torch.long)}
    return {name: value for name, value in found.items() if name in wanted and value is not None}


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


# Layouts of the same pixels


def _layouts(model: nn.Module, rows: int) -> Iterator[Inputs]:
    """Every way in which models take images, the most particular first."""
    import torch

    vision = _vision(model.config)
    size, channels = _first(vision, ("image_size",), IMAGE), _first(vision, _CHANNELS, 3)
    ones = torch.ones(rows, 1, dtype=torch.long)
    sizes = torch.full((rows, 2), size)
    pixels = _noise(rows, channels, size, size)
    tiles = _noise(rows, 2, channels, size, size)
    grid = torch.tensor([[1, 4, 4]] * rows)
    patch = _first(vision, ("patch_size", "spatial_patch_size"), PATCH)
    time = _first(vision, ("temporal_patch_size", "patch_temporal"), 1)
    for width in (channels * time * patch * patch, channels * patch * patch):
        flat = _noise(16 * rows, width)
        yield {"pixel_values": flat, "image_grid_thw": grid, "image_merge_sizes": 2 * ones[:, 0]}
        yield {"pixel_values": flat, "image_grid_thw": grid}
        yield {"pixel_values": flat, "image_grid_hw": grid[:, 1:]}
    yield {"pixel_values": _noise(16 * rows, channels, patch, patch), "image_grid_thw": grid}
    yield {"pixel_values": _noise(rows, 1, 4, channels, size, size), "aspect_ratio_ids": ones,
           "aspect_ratio_mask": ones[:, :, None].expand(rows, 1, 4)}  # fmt: skip
    yield {
        "pixel_values": tiles[:, :1],
        "pixel_attention_mask": torch.ones(rows, 1, size, size).bool(),
    }
    yield {"pixel_values": tiles, "image_sizes": sizes}
    yield {"pixel_values": pixels, "image_sizes": sizes}
    yield {"pixel_values": pixels, "high_res_pixel_values": pixels}
    yield {"pixel_values": pixels}
    yield {"pixel_values": tiles[:, :1]}
    yield {"pixel_values": _noise(rows, 16, channels * patch * patch),
           "spatial_shapes": sizes // sizes * 4,
           "pixel_attention_mask": torch.ones(rows, 16, dtype=torch.long)}  # fmt: skip
    yield {"pixel_values": tiles}
    yield {"pixel_values": tiles[:, :1], "image_attention_mask": torch.ones(rows, 6, 1)}
    yield {"pixel_values": pixels, "image_embeds_position_mask": _block(rows, 6, 1, 5)}
    yield {"input_features": _noise(rows, 128, 8 * 6)}
    placed = _noise(rows, 16, 2 + channels * patch * patch)
    placed[:, :, :2] = 1
    yield {"flattened_patches": placed}


_CHANNELS = ("num_channels", "in_channels", "in_chans")


def _noise(*shape: int) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def _block(rows: int, length: int, start: int, end: int) -> Tensor:
    import torch

    mask = torch.zeros(rows, length, dtype=torch.bool)
    mask[:, start:end] = True
    return mask


def _vision(config: Any) -> Any:
    names = ("vision_config", "vq_config", "encoder")
    return next((getattr(config, n) for n in names if getattr(config, n, None)), config)


def _first(config: Any, names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, list | tuple) else value
        if isinstance(value, int):
            return value
    return default


# Where the image's tokens go


def _placed(model: nn.Module, text: Inputs, layout: Inputs) -> Inputs:
    """The text with as many image tokens as the image has features, behind its first token."""
    import torch

    if "input_ids" not in text:
        return text | layout
    config = model.config
    image = _first(config, _IMAGE_IDS, -1)
    count = _features(model, layout, len(text["input_ids"])) if image >= 0 else 0
    inserted = [_first(config, _STARTS, -1), *[image] * count, _first(config, _ENDS, -1)]
    inserted = [number for number in inserted if number >= 0] if count else []
    ids = text["input_ids"]
    middle = torch.tensor(inserted, dtype=torch.long).expand(len(ids), -1)
    ids = torch.cat([ids[:, :1], middle, ids[:, 1:]], dim=1)
    placed = text | layout | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kinds = _parameters(model.forward) & set(_TOKEN_TYPES)
    return placed | {name: (ids == image).long() for name in kinds}


def _features(model: Any, layout: Inputs, rows: int) -> int:
    """How many features the model makes of one row's image."""
    import torch

    homes = (model, getattr(model, "model", None))
    names = ("get_image_features", "get_video_features")
    makers = [getattr(home, name) for name in names for home in homes if hasattr(home, name)]
    if not makers:
        return 0
    taken = _parameters(makers[0])
    every = any(name == "kwargs" for name in taken)
    given = {name: value for name, value in layout.items() if name in taken or every}
    with torch.no_grad():
        found = makers[0](**given)
    for name in ("pooler_output", "last_hidden_state"):
        found = found if getattr(found, name, None) is None else getattr(found, name)
    parts = found if isinstance(found, list | tuple) else [found]
    return int(sum(part.numel() // part.shape[-1] for part in parts)) // rows
