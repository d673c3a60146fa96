"""A config of any type, made tiny by rules that read nothing but names and values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.zoo.models.exceptions import THREE_AXES

# How large a field of a tiny config is, by the field's name.
#
# All widths are the same number, so that a field that must equal the width of another part does.


WIDTH, HEADS, HEAD, FEEDFORWARD = 64, 4, 16, 96
LAYERS, VOCABULARY, POSITIONS = 2, 192, 128
PATCH, IMAGE = 4, 16

_PATTERNS: list[tuple[str, int]] = [
    # Heads of a width, before the widths whose names they hold.
    (r"(.*_)?(num_)?(key_value_heads|kv_heads|kv_n_heads|n_kv_heads)|num_query_groups", 2),
    (r"linear_num_key_heads|num_hash(es)?", 2),
    (r"mamba_(n_heads|num_heads)|n_mamba_heads", 8),
    (r"mamba_d_ssm", 2 * WIDTH),
    (r"(.*_)?(num_|n_)?(attention_heads|heads)|n_head|linear_num_value_heads|num_heads", HEADS),
    (r"attention_head_dim|kv_channels|d_kv|d_head|dim_head", HEAD),
    (r"(.*_)?head_dim|(.*_)?head_size|mamba_d_head|mamba_headdim|linear_head_dim|rotary_dim", HEAD),
    (r"(.*_)?(intermediate_size|ffn_dim|ffn_hidden_size|ffn_size|inner_dim)(_mlp)?", FEEDFORWARD),
    (r"d_ff|dff|dim_ff|mlp_dim|d_inner|n_inner|(.*_)?feed_forward_size", FEEDFORWARD),
    (r"share_expert_dim|intermediate_multiple_size", FEEDFORWARD),
    (r"kv_lora_rank|q_lora_rank|o_lora_rank|(.*_)?lora_rank", 32),
    (r"(.*_)?(d_state|state_size)", 8),
    (r"(mamba_)?n_?groups", 2),
    (r"(mamba_)?chunk_size", 8),
    (r"laurel_rank|d_rel|adapter_rank|time_step_rank|mamba_dt_rank|hc_lowrank|gated_norm_rank", 8),
    (r"patch_embed_hidden_size", 3 * PATCH * PATCH),
    # Widths.
    (r"(.*_)?(hidden_size|hidden_dim|embed_dim|embedding_(size|dim)|d_model|emb_dim)", WIDTH),
    (r"hidden_size_.*|n_embd|(.*_)?(projection_dim|proj_dim|output_dim)|hidden_width", WIDTH),
    (r"(output|downsample|post_conv_(in|out|mid))_channels|lru_width|ple_embed_dim", WIDTH),
    (r"image_token_embed_dim|(projector|adapter)_(input|output)_dim|adapter_(in|out)_dim", WIDTH),
    (r"(.*_)?pooler_output_size|adapter_input_size|entity_emb_size", WIDTH),
    # Counts.
    (r"(.*_)?(num_experts|num_local_experts|n_routed_experts|moe_num_experts|zero_expert_num)", 4),
    (r"(num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|top_k_experts)", 2),
    (r"n_group|num_expert_group", 2),
    (r"topk_group|group_limited_topk", 1),
    (r"(num_|n_|moe_num_)shared_experts", 1),
    (r"(first_k_dense_replace|num_dense_layers|num_nextn_predict_layers)", 1),
    (r"(.*_)?vocab(_size)?(_.*)?", VOCABULARY),
    (r"(.*_)?(position_embeddings|positions|n_ctx|seq_len|max_seq_len|max_length)", POSITIONS),
    (r"model_max_length|position_embedding_size|context_length|max_source_positions", POSITIONS),
    # Windows, so short that a few tokens exceed them.
    (r"max_window_layers", 1),
    (r"sliding_window(_size)?|attention_window(_size)?|local_attention|local_radius", 4),
    (r"attention_chunk_size|index_topk|index_block_size", 4),
    # Images.
    (r"(.*_)?patch_size", PATCH),
    (r"(.*_)?image_size|crop_size|img_size|resolution", IMAGE),
    (r"num_query_tokens|(resampler_)?(num|n)_latents|latent_query_num|mm_tokens_per_image", 4),
    (r"resampler_depth|perceiver_depth", 1),
]
_ALWAYS = {WIDTH, HEAD}
"""Sizes that a smaller field is raised to, so that the parts fit together."""
_COMPILED = [(re.compile(pattern), size) for pattern, size in _PATTERNS]


def tiny_size(name: str, value: int) -> int:
    """The size of the field ``name`` in a tiny config; what no rule names stays as it is."""
    if value <= 0:
        return value
    for pattern, size in _COMPILED:
        if pattern.fullmatch(name):
            return size if size in _ALWAYS else min(value, size)
    return value


def tiny_sizes(name: str, values: list[Any]) -> list[Any]:
    """The same for a list of sizes, such as the widths of stages: their ratios stay."""
    sizes = [tiny_size(name, value) for value in values]
    if sizes == values or len(set(values)) == 1:
        return sizes
    return [max(1, value * max(sizes) // max(values)) for value in values]


# Ids of special tokens: where a config keeps them, and their places in a small vocabulary.


SMALL = 16
"""Ids below this one stay what they are."""

_ID = re.compile(
    r".*_(token_id|token_index|token_ids)|image_patch_id|vocab_offset|im_(start|end|newline)_id"
    r"|(pad|bos|eos|mask|unk)_index|.*suppress_tokens"
)


def special_ids(config: dict[str, Any]) -> set[int]:
    """Every id that a config names as special, nested configs included."""
    return {number for _, number in _named(config) if number >= 0}


def _named(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _named(value)
        elif _ID.fullmatch(str(name)):
            numbers = value if isinstance(value, list) else [value]
            yield from ((name, number) for number in numbers if type(number) is int)


def small_ids(config: dict[str, Any]) -> dict[int, int]:
    """Where each special id moves: the large ones to the vocabulary's end, in their order."""
    large = sorted(number for number in special_ids(config) if number >= SMALL)
    return {number: VOCABULARY - len(large) + rank for rank, number in enumerate(large)}


def move_ids(config: dict[str, Any], moved: dict[int, int]) -> dict[str, Any]:
    """The config with its special ids moved, nested configs included."""
    return {name: _move(name, value, moved) for name, value in config.items()}


def _move(name: str, value: Any, moved: dict[int, int]) -> Any:
    if isinstance(value, dict):
        return move_ids(value, moved)
    if not _ID.fullmatch(str(name)):
        return value
    if isinstance(value, list):
        return [moved.get(number, number) for number in value]
    return moved.get(value, value) if type(value) is int else value


# Which layers of a model its tiny version keeps: one of each kind, in order.


_COUNT = re.compile(
    r"(.*_)?(num_)?(hidden_layers|n_layers?|num_layers|layers|(encoder|decoder)_layers|depth"
    r"|num_blocks)"
)
_NO_COUNT = {"max_window_layers", "num_kv_shared_layers", "num_dense_layers"}
_MAIN = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_INDICES = re.compile(r".*(_layers|_indexes|_indices|_idxs|_layer_ids|_layer)")


def keep_some_layers(config: dict[str, Any]) -> dict[str, Any]:
    """The config with few layers: every per-layer list cut to the same chosen layers.

    Layers are of one kind if all per-layer lists agree on them, and all lists of layer numbers.
    The first layer of each kind is kept, then others up to the usual count.
    """
    counts = {name: value for name, value in config.items() if _is_count(name, value)}
    if not counts:
        return config
    total = next((counts[name] for name in _MAIN if name in counts), max(counts.values()))
    kept = _chosen(_kinds(config, total))
    cut = {name: _cut(name, value, total, kept) for name, value in config.items()}
    for name, value in counts.items():
        cut[name] = len(kept) if value == total else min(value, len(kept))
    return cut


def _is_count(name: str, value: Any) -> bool:
    is_named = bool(_COUNT.fullmatch(name)) and name not in _NO_COUNT
    return is_named and type(value) is int and value > 0


def _is_per_layer(value: Any, total: int) -> bool:
    return isinstance(value, list) and len(value) == total and total > 4


def _is_indices(name: str, value: Any, total: int) -> bool:
    if not _INDICES.fullmatch(name) or not isinstance(value, list) or not value:
        return False
    numbers = all(type(item) is int and 0 <= item < total for item in value)
    return numbers and not _is_per_layer_flag(value, total) and sorted(set(value)) == value


def _is_per_layer_flag(value: list[int], total: int) -> bool:
    return len(value) == total and set(value) <= {0, 1}


def _kinds(config: dict[str, Any], total: int) -> list[tuple[str, ...]]:
    lists = [value for value in config.values() if _is_per_layer(value, total)]
    shared = set(range(total - (config.get("num_kv_shared_layers") or 0), total))
    members = [shared] + [set(v) for name, v in config.items() if _is_indices(name, v, total)]
    lists = [value for value in lists if sorted(set(map(str, value))) != sorted(map(str, value))]
    return [
        tuple([*(str(value[n]) for value in lists), *(str(n in group) for group in members)])
        for n in range(total)
    ]


def _chosen(kinds: list[tuple[str, ...]]) -> list[int]:
    first = {kind: number for number, kind in reversed(list(enumerate(kinds)))}
    kept = set(first.values())
    spare = [number for number in range(len(kinds)) if number not in kept]
    kept |= set(spare[: max(0, LAYERS - len(kept))])
    return sorted(kept)


def _cut(name: str, value: Any, total: int, kept: list[int]) -> Any:
    if name == "num_kv_shared_layers" and value:
        return sum(number >= total - value for number in kept)
    if name == "per_layer_config" and isinstance(value, dict):
        return {str(new): value[key] for new, old in enumerate(kept)
                for key in value if int(key) == old}  # fmt: skip
    if _is_indices(name, value, total):
        return [new for new, old in enumerate(kept) if old in value]
    if _is_per_layer(value, total):
        return [value[number] for number in kept]
    return value


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
