"""What of a model training changes, by name and in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from safe_framework.core.base_change import named

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel


def trainable_parameters(model: SafeModel) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; those of a changed base are among them."""
    changed = named(model.base_change, model.base)
    return {
        name: parameter
        for name, parameter in (*model.modalities.named_parameters(), *changed.items())
        if parameter.requires_grad or name in changed
    }


def trainable_summary(model: SafeModel) -> str:
    """How many parameters are trainable, in PEFT's form."""
    trainable = sum(p.numel() for p in trainable_parameters(model).values())
    total = sum(p.numel() for p in model.parameters())
    share = 100 * trainable / total
    return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}"
