"""Random weights with which every layer and every token matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_STD = 0.15


def randomise(model: nn.Module, seed: int) -> None:
    """Redraw every matrix and table from one seed; the vectors stay as the model set them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=_STD, generator=generator)
