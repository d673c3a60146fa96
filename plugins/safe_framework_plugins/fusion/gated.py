"""Cross-attention behind a gate that depends on the text and on the sample.

``delta_t = g_t attention(h_t)`` with ``g_t = sigmoid(MLP([norm(h_t); norm(mean of the tokens)]))``,
one gate for each position and fused layer, trained with everything else.

The text's part of a gate is the position's own hidden state, not a mean over the prompt. Below a
fused layer the base has already mixed a position with its past (so fuse above layer 0, where it
has not), and this is all that a gate may know if cached decoding is to agree with uncached: a
cached step is shown the new positions alone, so a mean over the prompt would have to be kept from
an earlier call, and would be another one after a prompt that comes in chunks, or that grows. Here
``delta_t`` is a function of ``h_t`` and of the memory, which no call changes: by induction over
layers, equal inputs of a layer give equal deltas, however the text was cut into calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from safe_framework import BaseFacts, FusionAdapter, Memory, Tokens
from safe_framework.attention import CrossAttention, CrossAttentions, unit_rms
from safe_framework.interfaces.fusion import chosen_layers


class GatedFusion(FusionAdapter):
    """Cross-attention that each position lets in as far as text and sample ask for.

    Args:
        base: sizes of the base model, and its attention's weights.
        layers: decoder layers whose input it changes; negative ones count from the last, and
            fractions between 0 and 1 are parts of the depth.
        gate_size: width of the gate's hidden layer.
        heads: of the attention where it is random; by default the base's.
        init: ``"base"`` starts each layer's projections from the base's own attention there,
            ``"random"`` draws them; ``"base"`` falls back to random where the base's attention is
            of another kind.
        dropout: part of the attention's shares that is dropped in training.
    """

    def __init__(
        self,
        base: BaseFacts,
        *,
        layers: Sequence[int | float] = (0.5,),
        gate_size: int = 64,
        heads: int | None = None,
        init: Literal["base", "random"] = "base",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if gate_size < 1:
            raise ValueError(f"`gate_size` must be at least 1, not {gate_size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be from 0 up to 1, not {dropout}")
        self.layers = chosen_layers(layers, base.num_layers)
        self.blocks = CrossAttentions(
            {
                layer: CrossAttention(base, layer, init=init, heads=heads, dropout=dropout)
                for layer in self.layers
            }
        )
        self.gates = nn.ModuleDict(
            {str(layer): _Gate(base.hidden_size, gate_size) for layer in self.layers}
        )

    def remember(self, tokens: Tokens) -> Memory:
        """Keys, values, and the sample's part of the gate, of every fused layer."""
        attended = self.blocks.remember(tokens)
        mean = unit_rms(_mean(tokens))
        parts = {f"gate.{layer}": self._gate(layer).sample(mean) for layer in self.layers}
        return Memory({**attended.tensors, **parts}, tokens.mask)

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        """The attention's gated output for each position, (batch, length, hidden)."""
        return self.gate(hidden, memory, layer) * self.blocks.attend(hidden, memory, layer)

    def gate(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        """How far each position lets the sample in, from 0 to 1, (batch, length, 1)."""
        gate: Tensor = self._gate(layer)(unit_rms(hidden), memory.tensors[f"gate.{layer}"])
        return gate

    def _gate(self, layer: int) -> _Gate:
        return cast(_Gate, self.gates[str(layer)])


class _Gate(nn.Module):
    """An MLP of text and sample; its first layer is two, so that the sample's part is kept."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.text = nn.Linear(hidden, width)
        self.sample = nn.Linear(hidden, width, bias=False)
        self.out = nn.Linear(width, 1)

    def forward(self, text: Tensor, sample: Tensor) -> Tensor:
        """How far each position opens, from its state and the sample, (batch, length, 1)."""
        inner = nn.functional.gelu(self.text(text) + sample.unsqueeze(1))  # (batch, length, width)
        gate: Tensor = self.out(inner).sigmoid()  # (batch, length, 1)
        return gate


def _mean(tokens: Tokens) -> Tensor:
    """Mean of the tokens that are not masked, (batch, hidden)."""
    mask = tokens.mask.unsqueeze(-1)  # (batch, tokens, 1)
    return torch.where(mask, tokens.values, 0.0).sum(1) / mask.sum(1).clamp_min(1)
