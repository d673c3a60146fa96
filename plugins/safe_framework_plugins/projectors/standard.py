"""The spec's standard projector: pooled frames through an MLP to a fixed number of tokens."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from safe_framework import Frames, Projector, Tokens


class StandardProjector(Projector):
    """Mean and deviation of the frames over time, an MLP, a LayerNorm.

    ``tokens = LayerNorm(reshape(MLP(standardise([mean; deviation]))))``. Standardising uses the
    mean and deviation of each pooled channel over the training frames (``fit``), kept in
    buffers; until then it changes nothing.

    Args:
        frame_dim: width of the frames.
        hidden_size: width of the base's hidden states.
        tokens: how many tokens it gives.
        hidden_dim: width of the MLP's hidden layers.
        depth: linear layers of the MLP.
        dropout: after each hidden layer, in training.
    """

    def __init__(
        self,
        frame_dim: int,
        hidden_size: int,
        *,
        tokens: int = 8,
        hidden_dim: int = 2048,
        depth: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in {"tokens": tokens, "hidden_dim": hidden_dim, "depth": depth}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, not {value}")
        self.count = tokens
        self.register_buffer("center", torch.zeros(2 * frame_dim))
        self.register_buffer("scale", torch.ones(2 * frame_dim))
        widths = [2 * frame_dim, *[hidden_dim] * (depth - 1), tokens * hidden_size]
        self.mlp = nn.Sequential()
        for number, (wide, narrow) in enumerate(pairwise(widths)):
            if number:
                self.mlp.extend([nn.GELU(), nn.Dropout(dropout)])
            self.mlp.append(nn.Linear(wide, narrow))
        self.norm = nn.LayerNorm(hidden_size)

    center: Tensor
    scale: Tensor

    def fit(self, frames: Frames) -> None:
        """Take the mean and deviation of each pooled channel from training frames."""
        pooled = _pool(frames)
        self.center.copy_(pooled.mean(0))
        self.scale.copy_(pooled.std(0, correction=0).clamp_min(1e-6))

    def forward(self, frames: Frames) -> Tokens:
        """Tokens (batch, tokens, hidden); a sample without a valid frame has none."""
        flat = self.mlp((_pool(frames) - self.center) / self.scale)
        values = self.norm(flat.unflatten(-1, (self.count, -1)))  # (batch, tokens, hidden)
        mask = frames.mask.any(dim=1, keepdim=True).expand(-1, self.count)
        return Tokens(values, mask)


def _pool(frames: Frames) -> Tensor:
    """Mean and deviation over the valid frames, (batch, 2 * dim)."""
    weight = frames.mask.unsqueeze(-1).to(frames.values.dtype)  # (batch, frames, 1)
    values = torch.where(frames.mask.unsqueeze(-1), frames.values, 0.0)
    count = weight.sum(1).clamp_min(1.0)
    mean = values.sum(1) / count
    spread = ((values - mean.unsqueeze(1)) * weight).square().sum(1) / count
    return torch.cat([mean, (spread + 1e-10).sqrt()], dim=-1)
