"""Position encodings that need no parameter and fit any length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LONGEST = 10_000.0  # wavelength of the slowest wave, in positions, over 2 pi


def sinusoidal_positions(like: Tensor) -> Tensor:
    """Sines and cosines of each position (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    Args:
        like: what they will be added to, (batch, length, dim).

    Returns:
        (length, dim), of the same type and on the same device.

    >>> sinusoidal_positions(torch.zeros(1, 2, 2))
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    count, dim = like.shape[1:]
    positions = torch.arange(count, device=like.device, dtype=torch.float32)
    steps = torch.arange(0, dim, 2, device=like.device, dtype=torch.float32)
    angles = positions[:, None] * torch.exp(steps * (-math.log(_LONGEST) / dim))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :dim].to(like.dtype)
