"""Look into a run of the bare base: what enters a layer, and its output embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.layer_hooks_attachment import hidden_of
from safe_framework.core.model import SafeModel

BELOW, FINAL = "below", "final"


class _Reached(Exception):  # noqa: N818  # it ends a run, and is no error
    """Ends a run of the base, the rest of which nobody needs."""


@torch.no_grad()
def capture(
    model: SafeModel, ids: Tensor, mask: Tensor, *, layer: int | None = None, final: bool = False
) -> dict[str, Tensor]:
    """Run the base, with every modality off, as far as is needed.

    Args:
        model: whose base is run.
        ids: of the texts, (batch, length).
        mask: 1 where a position is real, (batch, length).
        layer: whose input hidden states are wanted, under ``BELOW``.
        final: whether the input of the output embeddings is wanted, under ``FINAL``.

    Returns:
        What was asked for and came by, each (batch, length, hidden).
    """
    seen: dict[str, Tensor] = {}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep a layer's input; stop there if nothing above it is wanted."""
        seen[BELOW] = hidden_of(args, kwargs)
        if not final:
            raise _Reached

    def leave(module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep what the output embeddings are given; nobody needs the logits."""
        seen[FINAL] = args[0]
        raise _Reached

    handles = []
    if layer is not None:
        entered = model.stack.of(model.base)[layer]
        handles.append(entered.register_forward_pre_hook(enter, with_kwargs=True))
    if final:
        handles.append(head_of(model.base).register_forward_pre_hook(leave))
    try:
        with suppress(_Reached), model.off():
            model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def head_of(base: nn.Module) -> nn.Module:
    """The output embeddings, which turn hidden states into logits."""
    head: nn.Module = base.get_output_embeddings()  # type: ignore[operator]  # a method
    return head


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same batch where the model is."""
    return {key: value.to(device) for key, value in batch.items()}
