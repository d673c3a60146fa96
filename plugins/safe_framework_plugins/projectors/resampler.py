"""Learned queries that attend to frames: a few tokens out of a long sequence.

Alayrac et al. 2022, Flamingo: a Visual Language Model for Few-Shot Learning (arXiv:2204.14198),
the Perceiver resampler; Li et al. 2023, BLIP-2 (arXiv:2301.12597), the Q-Former.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from safe_framework import Frames, Projector, Tokens
from safe_framework.utils.positions import sinusoidal_positions


class ResamplerProjector(Projector):
    """A fixed number of tokens from any number of frames, by attention (arXiv:2204.14198).

    Each block computes ``x += Attention(query=x, keys=[frames; x])`` and ``x += MLP(x)`` from
    learned queries x; since the queries attend to each other too, no row of attention is empty.
    The tokens are ``LayerNorm(Linear(x))``.

    Args:
        frame_dim: width of the frames.
        hidden_size: width of the base's hidden states.
        tokens: how many queries, and so tokens.
        dim: width inside the blocks.
        depth: how many blocks.
        heads: of attention; must divide ``dim``.
        dropout: after each half of a block, in training.
        positions: add sine waves to the frames, that tell their order.

    Raises:
        ValueError: an option is out of its range.
    """

    tokens: int

    def __init__(
        self,
        frame_dim: int,
        hidden_size: int,
        *,
        tokens: int = 16,
        dim: int = 256,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        positions: bool = True,
    ) -> None:
        super().__init__()
        _check({"tokens": tokens, "dim": dim, "depth": depth, "heads": heads}, dropout)
        if dim % heads:
            raise ValueError(f"`dim` must be a multiple of `heads` = {heads}, not {dim}")
        self.tokens, self.positions = tokens, positions
        self.queries = nn.Parameter(torch.randn(tokens, dim))
        self.enter = nn.Sequential(nn.LayerNorm(frame_dim), nn.Linear(frame_dim, dim))
        self.blocks = nn.ModuleList(_Block(dim, heads, dropout) for _ in range(depth))
        self.leave = nn.Sequential(nn.Linear(dim, hidden_size), nn.LayerNorm(hidden_size))

    def forward(self, frames: Frames) -> Tokens:
        """Tokens (batch, tokens, hidden); a sample without a valid frame has none."""
        given = torch.where(frames.mask.unsqueeze(-1), frames.values, 0.0)
        keys = self.enter(given)  # (batch, frames, dim)
        if self.positions:
            keys = keys + sinusoidal_positions(keys)
        x = self.queries.expand(len(keys), -1, -1)  # (batch, tokens, dim)
        for block in self.blocks:
            x = block(x, keys, frames.mask)
        mask = frames.mask.any(dim=1, keepdim=True).expand(-1, self.tokens)
        return Tokens(self.leave(x), mask)


class _Block(nn.Module):
    """Attention of queries to frames and to each other, then an MLP."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.key_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Queries (batch, tokens, dim), after they have looked at keys (batch, frames, dim)."""
        normed = self.query_norm(x)
        key, value = self.key_value(torch.cat([self.key_norm(keys), normed], dim=1)).chunk(2, -1)
        allowed = torch.cat([mask, mask.new_ones(normed.shape[:2])], dim=1)  # (batch, keys)
        heard = functional.scaled_dot_product_attention(
            self._split(self.query(normed)),
            self._split(key),
            self._split(value),
            attn_mask=allowed[:, None, None],
        )
        x = x + self.dropout(self.output(heard.transpose(1, 2).flatten(2)))
        out: Tensor = x + self.dropout(self.mlp(x))
        return out

    def _split(self, values: Tensor) -> Tensor:
        split = values.reshape(*values.shape[:2], self.heads, -1)
        return split.transpose(1, 2)  # (batch, heads, places, dim)


def _check(counts: dict[str, int], dropout: float) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, not {value}")
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be from 0 up to 1, not {dropout}")
