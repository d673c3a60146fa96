"""Flamingo's gated cross-attention with its feed-forward (Alayrac et al. 2022, arXiv:2204.14198).

``delta = a + f`` with ``a = tanh(alpha) attention(norm(h))`` and
``f = tanh(beta) feed_forward(norm(h + a))``, before each fused layer. Both gates start at zero, so
a fresh adapter changes nothing, and what lies behind them learns from the second step on. The
feed-forward is Flamingo's too: two linear maps without biases around a squared ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from safe_framework import BaseFacts, FusionAdapter, Memory, Tokens
from safe_framework.attention import CrossAttention, CrossAttentions
from safe_framework.interfaces.fusion import chosen_layers


class TanhGatedFusion(FusionAdapter):
    """Cross-attention and a feed-forward at chosen decoder layers, each behind a tanh gate.

    Args:
        base: sizes of the base model, and its attention's weights.
        layers: decoder layers whose input it changes; negative ones count from the last, and
            fractions between 0 and 1 are parts of the depth.
        expansion: width of the feed-forward, as a multiple of the hidden size.
        heads: of the attention where it is random; by default the base's.
        init: ``"base"`` starts each layer's projections from the base's own attention there,
            ``"random"`` draws them; ``"base"`` falls back to random where the base's attention is
            of another kind.
    """

    def __init__(
        self,
        base: BaseFacts,
        *,
        layers: Sequence[int | float] = (0.5,),
        expansion: int = 4,
        heads: int | None = None,
        init: Literal["base", "random"] = "base",
    ) -> None:
        super().__init__()
        if expansion < 1:
            raise ValueError(f"`expansion` must be at least 1, not {expansion}")
        self.layers = chosen_layers(layers, base.num_layers)
        self.attention = CrossAttentions(
            {
                layer: CrossAttention(
                    base, layer, init=init, heads=heads, silent=False, norm_query=False
                )
                for layer in self.layers
            }
        )
        self.blocks = nn.ModuleDict(
            {str(layer): _Block(base.hidden_size, expansion) for layer in self.layers}
        )

    def remember(self, tokens: Tokens) -> Memory:
        """Keys and values of every fused layer, each (batch, heads, tokens, dim)."""
        return self.attention.remember(tokens)

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        """What both gates let through to each position, (batch, length, hidden)."""
        block = cast(_Block, self.blocks[str(layer)])
        attended = self.attention.attend(block.norm(hidden), memory, layer)
        attended = block.attention_gate.tanh() * attended
        fed: Tensor = block.feed_forward_gate.tanh() * block.feed_forward(hidden + attended)
        return attended + fed


class _Block(nn.Module):
    """What a fused layer has beside its attention."""

    def __init__(self, hidden: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.attention_gate = nn.Parameter(torch.zeros(()))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(hidden),
            nn.Linear(hidden, expansion * hidden, bias=False),
            _SquaredReLU(),
            nn.Linear(expansion * hidden, hidden, bias=False),
        )
        self.feed_forward_gate = nn.Parameter(torch.zeros(()))


class _SquaredReLU(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        """``relu(values) ** 2``."""
        return values.relu().square()
