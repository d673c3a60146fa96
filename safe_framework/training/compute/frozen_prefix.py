"""The frozen prefix: layers below the first fused one, which hear nothing, run once for each text.

Cross-attention adds no position, and nothing below the first fused layer trains. So what enters
that layer is the same at every step and beside every sample. It is kept, and a step begins there:
the layers below stand aside, while the base still makes its own masks and positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.layer_discovery import PLAIN
from safe_framework.core.layer_hooks import STANDING_IN, StandIn, give_back, hidden_of, take_over
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import BELOW, capture
from safe_framework.utils.tensors import same_bits


class FrozenPrefix:
    """Lets calls of a model begin at a layer, from hidden states that are known.

    Args:
        model: whose layers below ``layer`` stand aside within ``given``.
        layer: at which calls begin, from 1.
    """

    def __init__(self, model: SafeModel, layer: int) -> None:
        self.model, self.layer = model, layer
        self._layers = list(model.stack.of(model.base)[:layer])
        self._forwards = [take_over(one) for one in self._layers]
        self._tuples: list[bool] = []

    @contextmanager
    def given(self, hidden: Tensor) -> Iterator[None]:
        """Within the block, a call that hears a sense begins with these hidden states.

        Args:
            hidden: what enters the layer, for the texts that are called, (batch, length, hidden);
                filled up or cut on the right to what is called.
        """
        last = self.layer - 1
        aside: dict[Any, StandIn] = {}
        for place, (forward, as_tuple) in enumerate(zip(self._forwards, self._tuples, strict=True)):
            aside[forward] = _passing(hidden if place == last else None, as_tuple)
        token = STANDING_IN.set(aside)
        try:
            yield
        finally:
            STANDING_IN.reset(token)

    @torch.no_grad()
    def holds(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether a call that begins at the layer gives, bit for bit, what a whole one gives.

        It does not where layers hand on more than hidden states, as T5's biases of positions.

        Args:
            batch: of texts beside samples, on the model's device.
        """
        ids, mask = batch["input_ids"], batch["attention_mask"]
        self._tuples = self._look(batch)
        hidden = capture(self.model, ids, mask, layer=self.layer).get(BELOW)
        if hidden is None or len(self._tuples) != self.layer:
            return False
        whole = self.model(**batch).logits
        capture(self.model, ids.flip(0), mask.flip(0))  # so that no layer remembers these texts
        try:
            with self.given(hidden):
                begun = self.model(**batch).logits
        except Exception:  # whatever a foreign layer raises, there is no prefix to rely on
            return False
        return same_bits(whole, begun)

    def close(self) -> None:
        """Give the layers the attributes that they had."""
        if not self.model.is_gradient_checkpointing:
            for layer in self._layers:
                give_back(layer)

    def _look(self, batch: Mapping[str, Tensor]) -> list[bool]:
        """Whether each layer below gives a tuple, as one run shows it."""
        seen: list[bool] = []

        def look(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            """Note whether the layer gives a tuple."""
            seen.append(isinstance(out, tuple))

        handles = [layer.register_forward_hook(look) for layer in self._layers]
        try:
            self.model(**batch)
        finally:
            for handle in handles:
                handle.remove()
        return seen


def first_fused_layer(model: SafeModel) -> int:
    """The layer up to which a text's hidden states depend on nothing that trains.

    0 where stage B changes the base, where a modality puts vectors of its own into the text, where
    layers run several times in a call, or where hidden states are not laid out as usual.
    """
    modalities = [model.modality(name) for name in model.modalities]
    marked = any(modality.markers is not None for modality in modalities)
    changed = model.base_change is not None
    if (
        changed
        or marked
        or not modalities
        or model.stack.passes != 1
        or model.stack.layout is not PLAIN
    ):
        return 0
    return min(layer for modality in modalities for layer in modality.fusion.layers)


def _passing(hidden: Tensor | None, as_tuple: bool) -> StandIn:
    """A layer that gives what it got, or ``hidden`` if that is known."""

    def forward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What stands in for the layer's own."""
        out = given = hidden_of(args, kwargs)
        if hidden is not None:
            out = nn.functional.pad(hidden, (0, 0, 0, given.shape[1] - hidden.shape[1]))
        return (out,) if as_tuple else out

    return forward
