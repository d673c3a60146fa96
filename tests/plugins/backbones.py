"""Tiny random vision backbones, written as checkpoint folders with their processor's facts."""

import json
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    BeitConfig,
    CLIPConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    PreTrainedConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)

from safe_framework.pretrained import quietly

SIZE, LAYERS = 32, 3
_TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}
_WIDE = _TRANSFORMER | {"intermediate_size": 24}
_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": SIZE, "width": SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.5],
}

KINDS = (
    "beit",
    "clip",
    "clip_vision",
    "convnext",
    "deit",
    "dinov2",
    "dinov2_registers",
    "siglip_vision",
    "swin",
    "vit",
)
STAGED = ("convnext", "swin")
"""Kinds whose stages differ in width."""


def config_of(kind: str) -> PreTrainedConfig:
    """The configuration of a tiny backbone."""
    match kind:
        case "beit":
            return BeitConfig(**_WIDE)
        case "clip":
            text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                    "num_attention_heads": 1, "vocab_size": 9, "bos_token_id": 1,
                    "eos_token_id": 2}  # fmt: skip
            return CLIPConfig(text_config=text, vision_config=_WIDE, projection_dim=8)
        case "clip_vision":
            return CLIPVisionConfig(**_WIDE)
        case "convnext":
            return ConvNextConfig(hidden_sizes=[8, 12, 16], depths=[1, 1, 1], num_stages=3)
        case "deit":
            return DeiTConfig(**_WIDE)
        case "dinov2":
            return Dinov2Config(**_TRANSFORMER, mlp_ratio=2, hidden_dropout_prob=0.5)
        case "dinov2_registers":
            return Dinov2WithRegistersConfig(**_TRANSFORMER, mlp_ratio=2)
        case "siglip_vision":
            return SiglipVisionConfig(**_WIDE)
        case "swin":
            return SwinConfig(
                embed_dim=8, depths=[1] * LAYERS, num_heads=[1, 2, 4], window_size=2,
                image_size=SIZE, patch_size=4, drop_path_rate=0.0,
            )  # fmt: skip
        case _:
            return ViTConfig(**_WIDE)


def write_backbone(folder: Path, kind: str) -> str:
    """Write a tiny random backbone and what its processor would do into an existing folder."""
    torch.manual_seed(0)
    with quietly():
        AutoModel.from_config(config_of(kind)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR), "utf-8")
    return str(folder)
