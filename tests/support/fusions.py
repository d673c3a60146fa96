"""Every shipped fusion adapter, in the variants that a law must hold for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from safe_framework.core.model import SafeModel
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.types import BaseFacts
from safe_framework_plugins.fusion.cross_attention import CrossAttentionFusion
from safe_framework_plugins.fusion.gated import GatedFusion
from safe_framework_plugins.fusion.lora import LoraFusion
from safe_framework_plugins.fusion.multilayer import MultilayerFusion
from safe_framework_plugins.fusion.tanh_gated import TanhGatedFusion
from tests.support.toys import ToyEncoder, ToyProjector

CLASSES: dict[str, Callable[..., FusionAdapter]] = {
    "cross_attention": CrossAttentionFusion,
    "gated": GatedFusion,
    "lora": LoraFusion,
    "multilayer": MultilayerFusion,
    "tanh_gated": TanhGatedFusion,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cross_attention": ("cross_attention", {}),
    "cross_attention, plain": ("cross_attention", {"norm_query": False, "norm_tokens": False}),
    "cross_attention, nothing": ("cross_attention", {"nothing": True, "init": "random"}),
    "gated": ("gated", {"gate_size": 8}),
    "lora": ("lora", {"rank": 2}),
    "lora, rslora": ("lora", {"rank": 2, "rslora": True}),
    "lora, dora": ("lora", {"rank": 2, "dora": True}),
    "multilayer": ("multilayer", {}),
    "multilayer, shared": ("multilayer", {"shared": True, "nothing": True}),
    "tanh_gated": ("tanh_gated", {"expansion": 2}),
}


def fresh(variant: str, base: BaseFacts, **options: Any) -> FusionAdapter:
    """A new adapter, in evaluation mode, at the first and the last layer."""
    name, own = VARIANTS[variant]
    torch.manual_seed(0)
    return CLASSES[name](base, **{"layers": [0, -1]} | own | options).eval()


def learned(fusion: FusionAdapter, spread: float = 0.5) -> FusionAdapter:
    """The same adapter, each trainable parameter moved as if something had been learned."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in fusion.parameters():
            if parameter.requires_grad:
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return fusion


def with_modality(variant: str, base: Any, *, trained: bool, **options: Any) -> SafeModel:
    """A base with the toy modality, fused by the adapter."""
    model = SafeModel(base)
    fusion = fresh(variant, model.facts(), **options)
    torch.manual_seed(0)
    model.add_modality(
        "touch",
        encoder=ToyEncoder(),
        projector=ToyProjector(),
        fusion=learned(fusion, 1.0) if trained else fusion,
    )
    return model
