"""Gradient checkpointing: recompute layers in the backward pass instead of keeping what they did.

Only calls that record gradients for a modality recompute; the base stays in evaluation mode, so no
dropout runs and every other call is the base's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from safe_framework.core.layer_hooks import RECOMPUTING, patch_forward, restore_forward
from safe_framework.errors import SafeError

Options = Mapping[str, Any] | None
"""Of ``torch.utils.checkpoint``; None where nothing is recomputed, or for the usual ones."""

_ALL: Mapping[str, Any] = {"every_n_layers": 1, "offload": False}


def enable_checkpointing(
    layers: nn.ModuleList,
    options: Mapping[str, Any] | None,
    others: Mapping[str, Any] | None = None,
) -> Mapping[str, Any]:
    """Let layers be recomputed in calls that say so.

    Args:
        layers: of the base; each gets a ``forward`` of its own until ``disable_checkpointing``.
        options: of ``torch.utils.checkpoint``; ``use_reentrant`` is False if it is not given.
        others: what newer Trainers can ask for beside these.

    Returns:
        The options that hold.

    Raises:
        SafeError: some layers only are to be recomputed, or activations to be moved away.
    """
    for name, value in (others or {}).items():
        if value != _ALL.get(name):
            raise SafeError(
                f"`{name}` = {value} is not supported: every layer is recomputed, in place",
                hint=f"leave out `{name}`",
            )
    for layer in layers:
        patch_forward(layer)
    return {"use_reentrant": False, **(options or {})}


def disable_checkpointing(layers: nn.ModuleList) -> None:
    """Give the layers the attributes that they had."""
    for layer in layers:
        restore_forward(layer)


@contextmanager
def use_checkpointing(options: Options) -> Iterator[None]:
    """Within the block, layers are recomputed where a modality is active; None changes nothing."""
    token = RECOMPUTING.set(options if torch.is_grad_enabled() else None)
    try:
        yield
    finally:
        RECOMPUTING.reset(token)


def without_cache(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call's inputs, without a cache of keys and values if its layers are recomputed.

    Raises:
        SafeError: the caller wants one, but a layer that runs twice would fill it twice.
    """
    if RECOMPUTING.get() is None:
        return inputs
    if inputs.get("past_key_values") is not None or inputs.get("use_cache"):
        raise SafeError(
            "a call whose layers are recomputed cannot use a cache of keys and values",
            hint="leave out `past_key_values` and `use_cache`, or call "
            "gradient_checkpointing_disable()",
        )
    return {**inputs, "use_cache": False}
