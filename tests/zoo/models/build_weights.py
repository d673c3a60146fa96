"""Random weights with which every layer and every token matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_MATRIX, _VECTOR = 0.15, 0.05


def randomise(model: nn.Module, seed: int) -> None:
    """Redraw every matrix and table, and shift every vector: a gate that starts at 0 opens."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(_MATRIX * noise)
            else:
                parameter.add_(_VECTOR * noise)
