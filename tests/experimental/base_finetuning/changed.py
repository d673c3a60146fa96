"""Models whose base was changed as if by training."""

from __future__ import annotations

import torch
from torch import nn

from safe_framework.config.schema import StageBSpec
from safe_framework.core.model import SafeModel
from safe_framework.experimental.base_finetuning.attach import change_base
from tests.support.toys import attached

LORA = StageBSpec("lora", rank=2)
LAYERS = StageBSpec("layers", layers=(-1,))


def changed(base: nn.Module, spec: StageBSpec = LORA, tokenizer: object = None) -> SafeModel:
    """The base with the toy sense, moved away from what it was."""
    model = attached(base, tokenizer=tokenizer)
    moved(model, spec)
    return model


def moved(model: SafeModel, spec: StageBSpec) -> None:
    """Change a model's base, and give what was changed something learned."""
    change = change_base(model, spec)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in change.tensors(model.base).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
