"""Cross-attention at many layers, each with a learned scale, over shared or separate weights.

``delta_k = s_k W_o softmax(clamp(Q K^T / sqrt(d))) V`` at layer ``k``, as in ``cross_attention``.
``W_o`` starts at zero, so a fresh adapter changes nothing. With shared weights one attention serves
every layer, which then differ by their scales alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from safe_framework import BaseFacts, FusionAdapter, Memory, Tokens
from safe_framework.attention import CrossAttention, CrossAttentions
from safe_framework.interfaces.fusion import chosen_layers

_QUARTERS = (0.25, 0.5, 0.75)


class MultilayerFusion(FusionAdapter):
    """Cross-attention at every k-th decoder layer or a list of them, each with its own scale.

    Args:
        base: sizes of the base model, and its attention's weights.
        layers: decoder layers whose input it changes; negative ones count from the last, and
            fractions between 0 and 1 are parts of the depth. By default the three quarter points.
        every: instead of ``layers``, every so many layers, the last of each group: 4 of 12 layers
            gives the fourth, eighth and twelfth, which are numbers 3, 7 and 11.
        shared: one attention for all layers, which starts from the first of them.
        scale: what each layer's learned scale starts from.
        heads: of the attention where it is random; by default the base's.
        init: ``"base"`` starts each layer's projections from the base's own attention there,
            ``"random"`` draws them; ``"base"`` falls back to random where the base's attention is
            of another kind.
        nothing: let each head attend to nothing, by a learned score beside the tokens'.
        dropout: part of the attention's shares that is dropped in training.
    """

    def __init__(
        self,
        base: BaseFacts,
        *,
        layers: Sequence[int | float] | None = None,
        every: int | None = None,
        shared: bool = False,
        scale: float = 1.0,
        heads: int | None = None,
        init: Literal["base", "random"] = "base",
        nothing: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"`scale` must be above 0, not {scale}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be from 0 up to 1, not {dropout}")
        self.layers = _chosen(layers, every, base.num_layers)
        self.shared = shared
        self.blocks = CrossAttentions(
            {
                layer: CrossAttention(
                    base, layer, init=init, heads=heads, nothing=nothing, dropout=dropout
                )
                for layer in (self.layers[:1] if shared else self.layers)
            }
        )
        self.scales = nn.ParameterDict(
            {str(layer): nn.Parameter(torch.tensor(float(scale))) for layer in self.layers}
        )

    def remember(self, tokens: Tokens) -> Memory:
        """Keys and values of every attention, each (batch, heads, tokens, dim)."""
        return self.blocks.remember(tokens)

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        """The attention's scaled output for each position, (batch, length, hidden)."""
        block = self.layers[0] if self.shared else layer
        delta: Tensor = self.scales[str(layer)] * self.blocks.attend(hidden, memory, block)
        return delta


def _chosen(layers: Sequence[int | float] | None, every: int | None, count: int) -> tuple[int, ...]:
    """The layers that one of the two options names."""
    if every is None:
        return chosen_layers(_QUARTERS if layers is None else layers, count)
    if layers is not None:
        raise ValueError("`every` cannot be given together with `layers`")
    if not 1 <= every <= count:
        raise ValueError(f"`every` must be from 1 to the base's {count} layers, not {every}")
    return tuple(range(every - 1, count, every))
