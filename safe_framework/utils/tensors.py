"""Tensors bit by bit, and copies of them on the CPU.

That "off is the base" means equality of bits. ``torch.equal`` calls 0.0 and -0.0 equal and NaN
unequal to itself; neither is a statement about bits:

>>> bitwise_equal(torch.tensor([0.0]), torch.tensor([-0.0]))
False
>>> bitwise_equal(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
True
"""

from __future__ import annotations

import torch
from torch import Tensor


def cpu_copy(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares no memory, as safetensors wants it."""
    return tensor.detach().cpu().contiguous().clone()


def bitwise_equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits; where they are does not count."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(as_bytes(first), as_bytes(second).to(first.device))


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor of any dtype in row-major order, flat, as ``torch.uint8``."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8)
