"""Whether a model can write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def generates(model: nn.Module) -> bool:
    """Whether ``generate`` is there for the model, by transformers' own word."""
    can: Any = getattr(model, "can_generate", None)
    return bool(can is not None and can())
