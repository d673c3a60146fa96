"""Positions that need no parameter and fit any length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SLOWEST = 10_000.0  # places of the slowest wave, over 2 pi


def position_waves(like: Tensor) -> Tensor:
    """Sines and cosines of each place (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    Args:
        like: what they will be added to, (batch, places, dim).

    Returns:
        Waves (places, dim), of the same type and on the same device.

    >>> position_waves(torch.zeros(1, 2, 2))
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    count, dim = like.shape[1:]
    places = torch.arange(count, device=like.device, dtype=torch.float32)
    steps = torch.arange(0, dim, 2, device=like.device, dtype=torch.float32)
    angles = places[:, None] * torch.exp(steps * (-math.log(_SLOWEST) / dim))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :dim].to(like.dtype)
