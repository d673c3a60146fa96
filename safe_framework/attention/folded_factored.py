"""The matrix of a projection, as the parts that it is the sum of."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from torch import Tensor, nn


@attrs.frozen(eq=False)
class Pair:
    """``scale * up @ down``, a low-rank part of a matrix (LoRA, Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        up: (out, rank).
        down: (rank, in).
        scale: of their product.
    """

    up: Tensor
    down: Tensor
    scale: float

    def __call__(self, values: Tensor) -> Tensor:
        """What this part makes of values, (..., in) to (..., out)."""
        narrow = nn.functional.linear(values, self.down) * self.scale
        return nn.functional.linear(narrow, self.up)


@attrs.frozen(eq=False)
class Factored:
    """A matrix and low-rank pairs, which together are what a projection multiplies with.

    Attributes:
        full: the matrix, (out, in).
        pairs: what is added to it.
        silent: the matrix is all zeros, so that the pairs alone need be computed.
    """

    full: Tensor
    pairs: tuple[Pair, ...] = ()
    silent: bool = False

    def transposed(self) -> Factored:
        """The parts of the transposed matrix, (in, out)."""
        pairs = [Pair(pair.down.mT, pair.up.mT, pair.scale) for pair in self.pairs]
        return Factored(self.full.mT, tuple(pairs), self.silent)

    def __call__(self, values: Tensor) -> Tensor:
        """What the projection makes of values, (..., in) to (..., out)."""
        parts = [pair(values) for pair in self.pairs]
        if not self.only_pairs:
            parts.insert(0, nn.functional.linear(values, self.full))
        return sum(parts[1:], parts[0])

    @property
    def only_pairs(self) -> bool:
        """Whether the pairs are all that need be computed."""
        return self.silent and bool(self.pairs)


FactoredOf = Callable[[nn.Module], Factored | None]
"""The matrix of a projection; None where it is more than a product with one."""


def plain(projection: nn.Module) -> Factored | None:
    """The weight of a linear layer without bias, which nobody watches or has sharded."""
    linear = type(projection).forward is nn.Linear.forward
    if not linear or projection.bias is not None or watched(projection):
        return None
    weight = projection.weight
    return Factored(weight) if type(weight) is nn.Parameter else None


def watched(*modules: nn.Module) -> bool:
    """Whether a hook or another forward would miss a call that is not made."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in modules
    )
