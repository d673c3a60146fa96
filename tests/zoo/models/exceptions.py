"""What the general rules cannot know: fields of single types, each with its reason."""

from __future__ import annotations

from typing import Any

CHANGES: dict[str, dict[str, Any]] = {
    # Attention comes every so many layers, more than there are.
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    # Which layers attend is left unset.
    "bamba": {"attn_layer_indices": [1]},
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
    # Two recurrent layers go before the first that attends.
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
    # Patches of an image, and the queries that read them.
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    # Must divide the few tokens that the index keeps.
    "glm5_next_text": {"index_kpool": 2},
    # As wide as the tower's last layer and each of the others that are read, side by side.
    "mllama_vision_model": {"intermediate_layers_indices": [0], "vision_output_dim": 128},
    # Layers of the tower by number, and there are fewer.
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    # One patch size, width and depth for each of four stages.
    "muse_spark_audio": {
        "num_hidden_layers": 4,
        "depths": [1, 1, 1, 1],
        "patch_sizes": [16, 6, 5, 4],
        "hidden_sizes": [16, 16, 32, 64],
    },
    # Convolutions: sizes that no other type names.
    "chameleon_vqgan": {
        "base_channels": 32,
        "latent_channels": 32,
        "num_embeddings": 8,
        "embed_dim": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
    },
    "emu3_vqgan": {
        "base_channels": 64,
        "codebook_size": 8,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
    },
    "janus_vqgan": {
        "base_channels": 32,
        "latent_channels": 32,
        "num_embeddings": 64,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
    },
    # Widths double at each of seven stages.
    "vibevoice_acoustic_tokenizer_encoder": {
        "num_filters": 4,
        "downsampling_ratios": [2, 2],
        "depths": [1, 1, 1],
    },
    # Its protein encoder's layers have the same name: only their number distinguishes them.
    "evolla": {"num_hidden_layers": 3},
    # Four patches in one, each as wide as the tower.
    "llama4_vision_model": {"intermediate_size": 256},
    # A patch's pixels, and the pixels of a clip's.
    "radio": {"patch_dim": 48, "video_patch_dim": 96, "max_img_size": 32},
    # Left unset by default, and read by the model.
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "diffusion_gemma_text": {
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 96,
    },
    # Positions that it writes at once, in 48 steps each time.
    "diffusion_gemma": {"canvas_length": 4},
    "granite4_vision": {
        "downsample_rate": "2/4",
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [1],
    },
    "qwen2_5_omni_thinker": {"vision_start_token_id": 20},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 20},
    "chameleon": {
        "vocabulary_map": {
            "<image>": 96,
            **{f"IMGIMG{c}Z": 100 + n for n, c in enumerate("ABCDEFGH")},
        }
    },
    "emu3": {
        "vocabulary_map": {
            "<image>": 96,
            "<|extra_200|>": 97,
            **{f"<|visual token {n:06}|>": 100 + n for n in range(8)},
        }
    },
    "step3p5": {"sliding_window": 4},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "qwen4_exp_text": {
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
    },
    # The cache asks the outer config for the layers of the inner ones.
    "blt": {"num_hidden_layers": 2},
}
"""Fields of a tiny config by its ``model_type``, nested configs included; merged last."""

_TOWER: dict[str, Any] = {
    "model_args": {"embed_dim": 64},
    "vocab_size": 8,
    "rms_norm_eps": 1e-6,
    "vocab_offset": 184,
    "model_type": "siglip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}

REPLACED: dict[str, dict[str, Any]] = {"timm_wrapper": _TOWER, "gemma3n_vision": _TOWER}
"""Whole nested configs that need a library which is no part of transformers."""

THREE_AXES = frozenset(
    f"{family}_text"
    for family in (
        "cosmos3_edge", "ernie4_5_vl_moe", "glm4v", "glm4v_moe", "glm_ocr", "hunyuan_vl",
        "paddleocr_vl", "qwen2_5_omni", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe",
        "qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe", "qwen4_exp",
    )
)  # fmt: skip
"""Types whose rotary frequencies are dealt to time, height and width, in numbers that their code
has for the real head unless the config says otherwise."""

STREAMS = {"musicgen_decoder": 4, "musicgen_melody_decoder": 4}
"""Rows of ids that make up one row of a text, where a row is several streams of codes."""
