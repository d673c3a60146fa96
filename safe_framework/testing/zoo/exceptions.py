"""What the general rules cannot know: fields of single types, each with its reason."""

from __future__ import annotations

from typing import Any

STARTS: dict[str, dict[str, Any]] = {}
"""Arguments of the default config, where it needs any."""

CHANGES: dict[str, dict[str, Any]] = {
    # Attention and experts every so many layers, more than there are.
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    # Which layers attend is left unset.
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    # The stack is run several times: the layer count is one per run.
    "hrm_text": {"num_hidden_layers": 16, "num_layers_per_stack": 2},
    # Its own `to_dict` drops what the model reads.
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    # A sliding layer's head is checked to be both of its parts.
    "dots3_note_text": {"head_dim": 32},
    # Two attention layers share their weights, and attention is twice as wide as the model.
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    # Positions are a product of two axes whose widths make up the model's.
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [32, 32],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
    },
    # Its query width is rounded up to 64, while its cache reckons without.
    "xlstm": {"qk_dim_factor": 1.0},
    # An adapter of a language must be chosen.
    "xmod": {"default_language": "en_XX"},
    # Left unset by default, and read by the model.
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "qwen4_exp_text": {"indexer_budget": 4, "indexer_compress_ratio": 2},
    # The cache asks the outer config for the layers of the inner ones.
    "blt": {"num_hidden_layers": 2},
}
"""Fields of a tiny config by its ``model_type``, nested configs included; merged last."""

REPLACED: dict[str, dict[str, Any]] = {
    "timm_wrapper": {
        "model_type": "siglip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
    },
}
"""Whole nested configs that need a library which is no part of transformers."""
