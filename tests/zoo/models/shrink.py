"""A config of any type, made tiny by rules that read nothing but names and values."""

from __future__ import annotations

from typing import Any

from tests.zoo.models.exceptions import THREE_AXES
from tests.zoo.models.shrink_ids import move_ids, small_ids
from tests.zoo.models.shrink_layers import keep_some_layers
from tests.zoo.models.shrink_sizes import (
    HEAD,
    HEADS,
    IMAGE,
    POSITIONS,
    VOCABULARY,
    WIDTH,
    tiny_size,
    tiny_sizes,
)

_LEFT_OUT = {
    "transformers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
}
_UNSET = {
    "head_dim": HEAD,
    "num_key_value_heads": HEADS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "image_token_id": VOCABULARY // 2,
    "image_token_index": VOCABULARY // 2,
    "video_token_index": VOCABULARY // 2 + 1,
}


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """The same kind of model with few layers, narrow and with few words.

    Args:
        config: what ``to_dict`` of a transformers config gives.
    """
    return _shrink(move_ids(config, small_ids(config)))


def _shrink(config: dict[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in config.items() if name not in _LEFT_OUT}
    if fields.get("model_type") in THREE_AXES:
        fields["rope_parameters"] = {"mrope_section": [0, 0, 0], **fields["rope_parameters"]}
    small = {name: _field(name, value) for name, value in keep_some_layers(fields).items()}
    return small | _related(fields)


def _related(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that follow from others, or that most checkpoints set and the default leaves out."""
    made: dict[str, Any] = _equal_heads(fields)
    made |= {name: size for name, size in _UNSET.items() if fields.get(name, 0) is None}
    if fields.get("is_encoder_decoder") and fields.get("decoder_start_token_id") is None:
        made["decoder_start_token_id"] = 0
    if "qk_nope_head_dim" in fields and "qk_rope_head_dim" in fields:
        parts = ("qk_nope_head_dim", "qk_rope_head_dim")
        made["qk_head_dim"] = sum(tiny_size(part, fields[part]) for part in parts)
        if fields.get("head_dim") == sum(fields[part] for part in parts):
            made["head_dim"] = made["qk_head_dim"]
    if "expand" in fields and "head_dim" in fields:
        made["num_heads"] = fields["expand"] * WIDTH // HEAD
    return made


def _equal_heads(fields: dict[str, Any]) -> dict[str, int]:
    """Key heads stay as many as the query heads where they are."""
    pairs = ((name, name.replace("key_value", "attention")) for name in fields)
    return {
        name: HEADS
        for name, queries in pairs
        if name != queries and fields[name] == fields.get(queries) and fields[name]
    }


def _field(name: str, value: Any) -> Any:
    if name.startswith("rope_") and isinstance(value, dict):
        return _rope(value) or None
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return _shrink(value)
    if name == "image_grid_pinpoints":
        return [[IMAGE, IMAGE]]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return tiny_sizes(name, value)
    return tiny_size(name, value) if type(value) is int else value


def _rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters for the tiny head and the few positions."""
    nested = {name: _rope(value) for name, value in rope.items() if isinstance(value, dict)}
    small = {**rope, **nested}
    if "original_max_position_embeddings" in rope:
        small["original_max_position_embeddings"] = POSITIONS // 2
    if "max_position_embeddings" in rope:
        small["max_position_embeddings"] = POSITIONS
    if rope.get("mrope_section"):
        small["mrope_section"] = _sections(rope)
    return small


def _sections(rope: dict[str, Any]) -> list[int]:
    """Rotary frequencies for time, height and width: they share half of a head's rotated part."""
    frequencies = int(HEAD * rope.get("partial_rotary_factor", 1.0)) // 2
    count = len(rope["mrope_section"])
    return [(frequencies + count - 1 - axis) // count for axis in range(count)]
