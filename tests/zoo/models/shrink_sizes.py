"""How large a field of a tiny config is, by the field's name.

All widths are the same number, so that a field that must equal the width of another part does.
"""

from __future__ import annotations

import re
from typing import Any

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
