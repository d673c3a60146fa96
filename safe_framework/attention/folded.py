"""Cross-attention whose query and output projections are folded into what it keeps of the tokens.

``(W_q h) . k = h . (W_q^T k)`` and ``W_o (p v) = p (W_o v)``: where tokens are few, ``W_q^T k`` and
``W_o v`` are smaller than the two projections, and a position attends by two products instead of
all that the projections and their low-rank pairs cost. DeepSeek-V2 (arXiv:2405.04434, section 2.1)
does the same to its compressed keys. Nothing is folded where a gradient is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import attrs
import torch
from torch import Tensor, nn

from safe_framework.utils.torch_private import forward_hooks, forward_pre_hooks


@attrs.frozen(eq=False)
class LowRankFactor:
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
class FactoredMatrix:
    """A matrix and low-rank pairs, which together are what a projection multiplies with.

    Attributes:
        full: the matrix, (out, in).
        pairs: what is added to it.
        full_is_zero: the matrix is all zeros, so that the pairs alone need be computed.
    """

    full: Tensor
    pairs: tuple[LowRankFactor, ...] = ()
    full_is_zero: bool = False

    def transposed(self) -> FactoredMatrix:
        """The parts of the transposed matrix, (in, out)."""
        pairs = [LowRankFactor(pair.down.mT, pair.up.mT, pair.scale) for pair in self.pairs]
        return FactoredMatrix(self.full.mT, tuple(pairs), self.full_is_zero)

    def __call__(self, values: Tensor) -> Tensor:
        """What the projection makes of values, (..., in) to (..., out)."""
        parts = [pair(values) for pair in self.pairs]
        if not self.only_pairs:
            parts.insert(0, nn.functional.linear(values, self.full))
        return sum(parts[1:], parts[0])

    @property
    def only_pairs(self) -> bool:
        """Whether the pairs are all that need be computed."""
        return self.full_is_zero and bool(self.pairs)


FactoredMatrixOf = Callable[[nn.Module], FactoredMatrix | None]
"""The matrix of a projection; None where it is more than a product with one."""


def plain_weight(projection: nn.Module) -> FactoredMatrix | None:
    """The weight of a linear layer without bias, which nobody watches or has sharded."""
    linear = type(projection).forward is nn.Linear.forward
    if not linear or projection.bias is not None or has_hooks(projection):
        return None
    weight = projection.weight
    return FactoredMatrix(weight) if type(weight) is nn.Parameter else None


def has_hooks(*modules: nn.Module) -> bool:
    """Whether a hook or another forward would miss a call that is not made."""
    return any(
        forward_hooks(module) or forward_pre_hooks(module) or "forward" in vars(module)
        for module in modules
    )


CLAMP = 50.0
"""Scores stay between minus and plus this."""
MASKED = -1e4
"""The score of a masked token; beside any other, its weight is exactly 0 in float32."""


@attrs.frozen(eq=False)
class FoldedAttention:
    """What a layer keeps of the tokens; a column is a token, or nothing, of one head.

    Attributes:
        keys: by which states at unit scale become scores.
        values: what each column, by its weight, adds to a position.
        filling: scores of columns that do not depend on the position.
        open: True where a column's score does.
    """

    keys: Annotated[Tensor, "batch hidden heads*columns"]
    values: Annotated[Tensor, "batch heads*columns hidden"]
    filling: Annotated[Tensor, "batch 1 heads columns"]
    open: Annotated[Tensor, "batch 1 1 columns"]

    def attention_weights(self, hidden: Tensor) -> Annotated[Tensor, "batch length heads columns"]:
        """How much each position attends to each column, in float32."""
        batch, _, heads, columns = self.filling.shape
        with without_autocast(hidden.device.type):
            scores = torch.bmm(hidden.float(), self.keys).view(batch, -1, heads, columns)
            return torch.where(self.open, scores.clamp(-CLAMP, CLAMP), self.filling).softmax(-1)

    def weighted_sum(self, weights: Tensor) -> Annotated[Tensor, "batch length hidden"]:
        """What each position is given by its weights."""
        with without_autocast(weights.device.type):
            return torch.bmm(weights.flatten(2), self.values)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A block that autocast leaves alone."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def fold(
    key: Annotated[Tensor, "batch heads tokens dim"],
    value: Annotated[Tensor, "batch heads tokens dim"],
    mask: Annotated[Tensor, "batch tokens"],
    query: FactoredMatrix,
    output: FactoredMatrix,
    nothing: Annotated[Tensor, "heads"] | None,
) -> FoldedAttention:
    """Fold the projections ``query`` and ``output`` into keys and values."""
    heads, dim = key.shape[1], key.shape[3]
    filling = torch.where(mask, 0.0, MASKED)[:, None].expand(-1, heads, -1)
    if nothing is not None:  # one more column, of zeros
        key, value = (nn.functional.pad(part, (0, 0, 0, 1)) for part in (key, value))
        score = nothing.float()[None, :, None].expand(len(mask), -1, 1)
        filling = torch.cat([filling, score], dim=-1)
        mask = nn.functional.pad(mask, (0, 1), value=False)
    with without_autocast(key.device.type):
        keys = _through(key.float() / dim**0.5, query)
        values = _through(value.float(), output.transposed())
    return FoldedAttention(keys.mT, values, filling[:, None], mask[:, None, None])


def _through(
    values: Annotated[Tensor, "batch heads columns dim"], matrix: FactoredMatrix
) -> Annotated[Tensor, "batch heads*columns hidden"]:
    """Each head's values times its rows of a matrix of (heads * dim, hidden)."""
    batch, heads, columns, dim = values.shape
    by_head = values.transpose(0, 1).flatten(1, 2)  # (heads, batch*columns, dim)

    def times(part: Tensor) -> Tensor:
        """Each head's values times its rows of a part."""
        rows = part.float().reshape(heads, dim, -1)
        return torch.bmm(by_head, rows).flatten(0, 1)  # (heads*batch*columns, width of the part)

    pairs = [(times(pair.up) * pair.scale, pair.down.float()) for pair in matrix.pairs]
    if matrix.only_pairs:
        (narrow, wide), *pairs = pairs
        whole = narrow @ wide
    else:
        whole = times(matrix.full)
    for narrow, wide in pairs:
        whole = whole.addmm(narrow, wide)
    return whole.view(heads, batch, columns, -1).transpose(0, 1).flatten(1, 2)


def is_worth_folding(key: Annotated[Tensor, "batch heads tokens dim"], nothing: bool) -> bool:
    """Whether what is kept is no larger than the projections that it stands for."""
    rows, _, tokens, dim = key.shape
    return rows * (tokens + nothing) <= dim
