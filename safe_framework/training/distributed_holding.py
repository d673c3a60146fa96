"""Trainable parameters that take part in every step, whatever its batch holds.

Processes that average their gradients wait for each other's. A process whose batch has no sample
of a sense would have none to give for its parts, and all would wait forever; so it gives zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn


class _Held(torch.autograd.Function):
    """The same bits, and a zero gradient for each parameter."""

    @staticmethod
    def forward(context: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        """The value as it is."""
        context.parameters = parameters
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Its gradient, and zeros for the parameters."""
        return gradient, *(p.new_zeros(()).expand_as(p) for p in context.parameters)


def hold(value: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """``value``, bit for bit, on which every parameter depends with a gradient of zero.

    >>> parameter = nn.Parameter(torch.tensor([float("inf")]))
    >>> hold(torch.tensor(2.0), [parameter]).backward()
    >>> parameter.grad
    tensor([0.])
    """
    held: Tensor = _Held.apply(value, *parameters)  # type: ignore[no-untyped-call]  # torch's own
    return held


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, in one go and in a fixed order."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        flat = torch.cat([gradient.flatten() for gradient in alike])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        parts = torch.split(flat, [gradient.numel() for gradient in alike])
        for gradient, part in zip(alike, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
