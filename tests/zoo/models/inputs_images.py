"""An image in each row's call, for the models that take one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tests.zoo.models.inputs_layouts import first_number, layouts_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Inputs = dict[str, "Tensor"]

_IMAGE_IDS = ("image_token_id", "image_token_index", "image_patch_id", "video_token_index")
_STARTS = ("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index")
_ENDS = ("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index")
_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")


def with_image(model: nn.Module, text: Inputs) -> Iterator[Inputs]:
    """The text's inputs with an image in each row, one guess after another at its layout."""
    for layout in layouts_of(model.config, len(next(iter(text.values())))):
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


def _placed(model: nn.Module, text: Inputs, layout: Inputs) -> Inputs:
    """The text with as many image tokens as the image has features, behind its first token."""
    import torch

    if "input_ids" not in text:
        return text | layout
    config = model.config
    image = first_number(config, _IMAGE_IDS, -1)
    count = _features(model, layout, len(text["input_ids"])) if image >= 0 else 0
    inserted = [
        first_number(config, _STARTS, -1),
        *[image] * count,
        first_number(config, _ENDS, -1),
    ]
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
