"""Tiny bases and a toy modality for every test, and one shipped adapter for them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.testing.bases import (
    BASES,
    END,
    HIDDEN,
    IMAGE,
    LAYERS,
    PAD,
    VOCABULARY,
    WORDS,
    bart,
    gpt2,
    llama,
    llava,
    mixtral,
    opt,
    t5,
    texts,
    tokenizer,
)
from safe_framework.testing.toys import (
    DIM,
    FRAMES,
    ToyEncoder,
    ToyFusion,
    ToyProjector,
    attached,
    felt,
)
from safe_framework_plugins.fusion.lora import LoraFusion

__all__ = [
    "BASES",
    "DIM",
    "END",
    "FRAMES",
    "HIDDEN",
    "IMAGE",
    "LAYERS",
    "PAD",
    "VOCABULARY",
    "WORDS",
    "ToyEncoder",
    "ToyFusion",
    "ToyProjector",
    "attached",
    "bart",
    "every_tensor",
    "felt",
    "gpt2",
    "llama",
    "llava",
    "lora",
    "mixtral",
    "opt",
    "t5",
    "texts",
    "tokenizer",
]


def lora(model: SafeModel, **options: Any) -> LoraFusion:
    """A fresh adapter for ``model``."""
    return LoraFusion(model.facts(), **{"layers": [0, -1], "rank": 2} | options)


def every_tensor(model: nn.Module) -> list[tuple[str, Tensor]]:
    """All parameters and buffers of a model by name, the base's too."""
    return [*model.named_parameters(), *model.named_buffers()]
