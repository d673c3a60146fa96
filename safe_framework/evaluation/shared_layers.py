"""Calls with a modality that begin where it first acts, from what the base's own call gave there.

A text is read by the base and beside several samples. Below the first fused layer all of these
compute the same, to the bit; whether a base's calls can begin there is tried on the first texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.frozen_prefix import FrozenPrefix, first_fused_layer
from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.layer_hooks import get_hidden_states, registered
from safe_framework.core.model import SafeModel
from safe_framework.utils.torch_private import compiled_call

_TEXT = {"input_ids", "attention_mask"}


class SharedLayers:
    """Lets calls on a batch of texts share the layers below the first fused one.

    Args:
        model: in eval mode.
        gate: strengths of the calls, by modality.
    """

    def __init__(self, model: SafeModel, gate: Mapping[str, float]) -> None:
        self.model, self.gate = model, dict(gate)
        self._prefix: FrozenPrefix | None = None
        self._untried = _may_begin_there(model)

    @classmethod
    @contextmanager
    def of(cls, model: SafeModel, gate: Mapping[str, float]) -> Iterator[SharedLayers]:
        """Within the block, calls may share layers; behind it these are as they were."""
        made = cls(model, gate)
        try:
            yield made
        finally:
            if made._prefix is not None:
                made._prefix.close()

    @contextmanager
    def kept(self) -> Iterator[list[Tensor]]:
        """Within the block, what enters the first fused layer is kept, of each call of the base."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            """Keep it."""
            found.append(get_hidden_states(args, kwargs))

        if not self._untried and self._prefix is None:
            yield found
            return
        entered = self.model.stack.of(self.model.base)[first_fused_layer(self.model)]
        with registered(entered.register_forward_pre_hook(keep, with_kwargs=True)):
            yield found

    @contextmanager
    def shared(
        self, kept: list[Tensor], given: Mapping[str, Any], plain: Mapping[str, Any]
    ) -> Iterator[None]:
        """Within the block, a call begins behind what is shared, if it can.

        Args:
            kept: of one call of the base, on ``plain``.
            given: what the call is given: the same texts, with samples.
            plain: the texts alone.
        """
        own = {name for name in given if "__" not in name}
        if len(kept) != 1 or plain.keys() != _TEXT or own != _TEXT:
            yield
            return
        if self._untried:
            self._untried, self._prefix = False, self._tried(given, plain)
        if self._prefix is None:
            yield
            return
        with self._prefix.start_from(kept[0]):
            yield

    @torch.no_grad()
    def _tried(self, given: Mapping[str, Any], plain: Mapping[str, Any]) -> FrozenPrefix | None:
        """The prefix, if a call that begins behind it gives what a whole one gives, to the bit."""
        prefix = FrozenPrefix(self.model, first_fused_layer(self.model))
        other = {name: values.flip(0) for name, values in plain.items()}
        if prefix.matches_whole_call({**given, "gate": self.gate}, other=other):
            return prefix
        prefix.close()
        return None


def _may_begin_there(model: SafeModel) -> bool:
    """Whether no known property of a model keeps its calls from sharing layers."""
    return (
        isinstance(model, SafeModel)  # and not a peer that is measured like one
        and first_fused_layer(model) > 0
        and not model.split_rows
        and not model.is_gradient_checkpointing
        and not decodes_separately(model.base)
        and compiled_call(model.base) is None
    )
