"""The spec's standard projector: pooled frames through an MLP to a fixed number of tokens."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from safe_framework import Frames, Projector, Tokens

_FARTHEST = 6.0  # deviations from the mean, beyond which a channel says nothing more


class StandardProjector(Projector):
    """Statistics of the frames over time, an MLP, a LayerNorm.

    ``tokens = LayerNorm(reshape(MLP(standardise([mean; deviation; change]))))``, where change
    is the mean absolute difference of neighbouring frames. Standardising uses the mean and
    deviation of each pooled channel over the training frames (``fit``), kept in buffers.

    Args:
        frame_dim: width of the frames.
        hidden_size: width of the base's hidden states.
        tokens: how many tokens it gives.
        hidden_dim: width of the MLP's hidden layers.
        depth: linear layers of the MLP.
        dropout: after each hidden layer, in training.
        noise: deviation of Gaussian noise on the standardised channels, in training.
    """

    tokens: int
    center: Tensor
    scale: Tensor

    def __init__(
        self,
        frame_dim: int,
        hidden_size: int,
        *,
        tokens: int = 8,
        hidden_dim: int = 2048,
        depth: int = 2,
        dropout: float = 0.1,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in {"tokens": tokens, "hidden_dim": hidden_dim, "depth": depth}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, not {value}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be from 0 up to 1, not {dropout}")
        if noise < 0:
            raise ValueError(f"`noise` must be at least 0, not {noise}")
        self.tokens, self.noise = tokens, noise
        self.register_buffer("center", torch.zeros(3 * frame_dim))
        self.register_buffer("scale", torch.ones(3 * frame_dim))
        self.mlp = _mlp([3 * frame_dim, *[hidden_dim] * (depth - 1), tokens * hidden_size], dropout)
        self.norm = nn.LayerNorm(hidden_size)

    def fit(self, frames: Frames) -> None:
        """Take the mean and deviation of each pooled channel from training frames."""
        pooled = _pool(frames)
        self.center.copy_(pooled.mean(0))
        self.scale.copy_(pooled.std(0, correction=0) + 1e-4)

    def forward(self, frames: Frames) -> Tokens:
        """Tokens (batch, tokens, hidden); a sample without a valid frame has none."""
        pooled = ((_pool(frames) - self.center) / self.scale).clamp(-_FARTHEST, _FARTHEST)
        if self.training and self.noise:
            pooled = pooled + self.noise * torch.randn_like(pooled)
        flat = self.mlp(pooled)
        values = self.norm(flat.unflatten(1, (self.tokens, -1)))  # (batch, tokens, hidden)
        mask = frames.mask.any(dim=1, keepdim=True).expand(-1, self.tokens)
        return Tokens(values, mask)


def _mlp(widths: list[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


def _pool(frames: Frames) -> Tensor:
    """Mean, deviation and mean absolute change over the valid frames, (batch, 3 * dim)."""
    values = torch.where(frames.mask.unsqueeze(-1), frames.values, 0.0)
    mean = _mean(values, frames.mask)
    spread = _mean((values - mean.unsqueeze(1)).square(), frames.mask)
    both = frames.mask[:, 1:] & frames.mask[:, :-1]
    change = _mean(values.diff(dim=1).abs(), both)
    return torch.cat([mean, (spread + 1e-10).sqrt(), change], dim=-1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the frames where the mask is True, 0 where there is none, (batch, dim)."""
    weight = mask.unsqueeze(-1).to(values.dtype)  # (batch, frames, 1)
    return (values * weight).sum(1) / weight.sum(1).clamp_min(1.0)
