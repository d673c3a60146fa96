"""Cross-attention from text to a modality's tokens, with all four projections trained.

``delta = s W_o softmax(clamp(Q K^T / sqrt(d))) V`` with ``Q = W_q norm(hidden)``, ``K = W_k
norm(tokens)``, ``V = W_v norm(tokens)``: scores in float32, clamped to +-50, masked tokens at -1e4.
``W_o`` starts at zero, so a fresh adapter changes nothing. A fixed start that is heard at once,
``silent_start = false`` with ``residual_scale = 0.05``, is the other choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from safe_framework import BaseFacts, FusionAdapter, Memory, Tokens
from safe_framework.attention import CrossAttention, CrossAttentions
from safe_framework.interfaces.fusion import chosen_layers


class CrossAttentionFusion(FusionAdapter):
    """Cross-attention at chosen decoder layers, with plain trainable projections.

    Args:
        base: sizes of the base model, and its attention's weights.
        layers: decoder layers whose input it changes; negative ones count from the last, and
            fractions between 0 and 1 are parts of the depth.
        heads: of the attention where it is random; by default the base's.
        init: ``"base"`` starts each layer's projections from the base's own attention there,
            ``"random"`` draws them; ``"base"`` falls back to random where the base's attention is
            of another kind.
        silent_start: the output projection starts at zero. If not, a fresh adapter is heard, and
            so breaks the law that a fresh one is silent.
        residual_scale: fixed number that multiplies the attention's output.
        norm_query: normalise hidden states to a root mean square of 1.
        norm_tokens: normalise tokens to a root mean square of 1.
        nothing: let each head attend to nothing, by a learned score beside the tokens'.
        attention_dropout: part of the attention's shares that is dropped in training.
        output_dropout: part of its output that is dropped in training.
    """

    def __init__(
        self,
        base: BaseFacts,
        *,
        layers: Sequence[int | float] = (0,),
        heads: int | None = None,
        init: Literal["base", "random"] = "base",
        silent_start: bool = True,
        residual_scale: float = 1.0,
        norm_query: bool = True,
        norm_tokens: bool = True,
        nothing: bool = False,
        attention_dropout: float = 0.1,
        output_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 < residual_scale < math.inf:
            raise ValueError(f"`residual_scale` must be above 0, not {residual_scale}")
        if not 0 <= attention_dropout < 1:
            raise ValueError(f"`attention_dropout` must be from 0 up to 1, not {attention_dropout}")
        if not 0 <= output_dropout < 1:
            raise ValueError(f"`output_dropout` must be from 0 up to 1, not {output_dropout}")
        self.layers = chosen_layers(layers, base.num_layers)
        self.residual_scale = residual_scale
        self.dropout = nn.Dropout(output_dropout)
        self.blocks = CrossAttentions(
            {
                layer: CrossAttention(
                    base,
                    layer,
                    init=init,
                    heads=heads,
                    silent=silent_start,
                    nothing=nothing,
                    dropout=attention_dropout,
                    norm_query=norm_query,
                    norm_tokens=norm_tokens,
                )
                for layer in self.layers
            }
        )

    def remember(self, tokens: Tokens) -> Memory:
        """Keys and values of every fused layer, each (batch, heads, tokens, dim)."""
        return self.blocks.remember(tokens)

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        """The attention's scaled output for each position, (batch, length, hidden)."""
        given: Tensor = self.dropout(self.blocks.attend(hidden, memory, layer))
        return self.residual_scale * given
