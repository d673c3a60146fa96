"""Cross-attention whose query and output projections are folded into what it keeps of the tokens.

``(W_q h) . k = h . (W_q^T k)`` and ``W_o (p v) = p (W_o v)``: where tokens are few, ``W_q^T k`` and
``W_o v`` are smaller than the two projections, and a position attends by two products instead of
all that the projections and their low-rank pairs cost. DeepSeek-V2 (arXiv:2405.04434, section 2.1)
does the same to its compressed keys. Nothing is folded where a gradient is wanted.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import attrs
import torch
from torch import Tensor, nn

CLAMP = 50.0
"""Scores stay between minus and plus this."""
MASKED = -1e4
"""The score of a masked token; beside any other, its share is exactly 0 in float32."""


@attrs.frozen(eq=False)
class Folded:
    """What a layer keeps of the tokens; a column is a token, or nothing, of one head.

    Attributes:
        keys: by which states at unit scale become scores.
        values: what a share of each column adds to a position.
        filling: scores of columns that do not depend on the position.
        open: True where a column's score does.
    """

    keys: Annotated[Tensor, "batch hidden heads*columns"]
    values: Annotated[Tensor, "batch heads*columns hidden"]
    filling: Annotated[Tensor, "batch 1 heads columns"]
    open: Annotated[Tensor, "batch 1 1 columns"]

    def shares(self, hidden: Tensor) -> Annotated[Tensor, "batch length heads columns"]:
        """How much each position attends to each column, in float32."""
        batch, _, heads, columns = self.filling.shape
        with exact(hidden.device.type):
            scores = torch.bmm(hidden.float(), self.keys).view(batch, -1, heads, columns)
            return torch.where(self.open, scores.clamp(-CLAMP, CLAMP), self.filling).softmax(-1)

    def given(self, shares: Tensor) -> Annotated[Tensor, "batch length hidden"]:
        """What each position is given for its shares."""
        with exact(shares.device.type):
            return torch.bmm(shares.flatten(2), self.values)


def exact(device: str) -> AbstractContextManager[object]:
    """A block that autocast leaves alone."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def fold(
    key: Annotated[Tensor, "batch heads tokens dim"],
    value: Annotated[Tensor, "batch heads tokens dim"],
    mask: Annotated[Tensor, "batch tokens"],
    query: Annotated[Tensor, "heads*dim hidden"],
    output: Annotated[Tensor, "hidden heads*dim"],
    nothing: Annotated[Tensor, "heads"] | None,
) -> Folded:
    """Fold the projections ``query`` and ``output`` into keys and values."""
    heads, dim = key.shape[1], key.shape[3]
    with exact(key.device.type):
        scaled, by_head = key.float() / dim**0.5, query.float().reshape(heads, dim, -1)
        keys = torch.einsum("bhtd,hdk->bhtk", scaled, by_head)
        by_head = output.float().reshape(-1, heads, dim)
        values = torch.einsum("bhtd,khd->bhtk", value.float(), by_head)
    filling = torch.where(mask, 0.0, MASKED)[:, None].expand(-1, heads, -1)
    if nothing is not None:  # one more column, whose value is zero
        keys, values = (nn.functional.pad(part, (0, 0, 0, 1)) for part in (keys, values))
        score = nothing.float()[None, :, None].expand(len(mask), -1, 1)
        filling = torch.cat([filling, score], dim=-1)
        mask = nn.functional.pad(mask, (0, 1), value=False)
    return Folded(
        keys.flatten(1, 2).mT, values.flatten(1, 2), filling[:, None], mask[:, None, None]
    )


def pays(key: Annotated[Tensor, "batch heads tokens dim"], nothing: bool) -> bool:
    """Whether what is kept is no larger than the projections that it stands for."""
    rows, _, tokens, dim = key.shape
    return rows * (tokens + nothing) <= dim
