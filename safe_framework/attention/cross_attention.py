"""Attention of text positions to a modality's tokens, from which fusion adapters are made.

``W_o softmax(clamp(Q K^T / sqrt(d))) V`` with ``Q = W_q norm(hidden)``, ``K = W_k norm(tokens)``,
``V = W_v norm(tokens)``. A position attends to tokens and never to another position, so that what
it is given depends on no later one, and is the same with a cache and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn

from safe_framework.attention.folded import (
    CLAMP,
    MASKED,
    FactoredMatrixOf,
    FoldedAttention,
    fold,
    is_worth_folding,
    plain_weight,
    without_autocast,
)
from safe_framework.interfaces.types import BaseFacts, Memory, Tokens

_OBSERVER: ContextVar[Callable[[Tensor], None] | None] = ContextVar(
    "safe_framework_observer", default=None
)
_ever_observed = False  # a plain flag costs a compiled graph nothing, where a ContextVar breaks it


@contextmanager
def observed(tell: Callable[[Tensor], None]) -> Iterator[None]:
    """Within the block, tell ``tell`` the weights of every attention, as float32 on the CPU.

    Holds for this thread or task only. They are (batch, heads, length, tokens), before dropout
    and without what goes to nothing.
    """
    global _ever_observed
    _ever_observed = True
    token = _OBSERVER.set(tell)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def _tell(weights: Tensor) -> None:
    tell = _OBSERVER.get()
    if tell is not None:
        tell(weights.detach().float().cpu())


def unit_rms(values: Tensor) -> Tensor:
    """Root-mean-square normalisation without weights, as a layer's own attention expects."""
    return nn.functional.rms_norm(values, values.shape[-1:])


def attend(
    query: Annotated[Tensor, "batch heads length dim"],
    key: Annotated[Tensor, "batch heads tokens dim"],
    value: Annotated[Tensor, "batch heads tokens dim"],
    mask: Annotated[Tensor, "batch tokens"],
    *,
    nothing: Tensor | None = None,
    dropout: float = 0.0,
) -> Annotated[Tensor, "batch heads length dim"]:
    """Masked attention in float32, whatever the inputs' dtype and autocast say.

    Args:
        query: of each position.
        key: of each token.
        value: of each token.
        mask: True where a token may be attended to; at least one of each row.
        nothing: each head's score of attending to nothing, (heads,); None for no such choice.
        dropout: part of the weights that is dropped.
    """
    with without_autocast(query.device.type):
        scores = query.float() @ key.float().mT / query.shape[-1] ** 0.5
        scores = scores.clamp(-CLAMP, CLAMP).masked_fill(~mask[:, None, None], MASKED)
        if nothing is None:
            weights = scores.softmax(-1)
        else:
            rest = nothing.float()[:, None, None].expand(*scores.shape[:-1], 1)
            weights = torch.cat([scores, rest], dim=-1).softmax(-1)[..., :-1]
        if _ever_observed:
            _tell(weights)
        if dropout:
            weights = nn.functional.dropout(weights, dropout)
        context: Tensor = weights @ value.float()
        return context


class CrossAttention(nn.Module):
    """Attention of one decoder layer's positions to tokens, with four projections.

    Args:
        base: sizes of the base model, and its attention's weights.
        layer: of the base, whose attention ``init`` may copy.
        init: ``"base"`` copies query, key and value from the layer's own attention and falls back
            to ``"random"``, which draws them, where that is of another kind.
        heads: of the attention where it is random; by default the base's.
        silent: the output projection is zero; otherwise it starts as the other three do.
        nothing: each head can also attend to nothing, by a learned score beside the tokens'.
        dropout: part of the attention's weights that is dropped in training.
        norm_query: normalise hidden states to a root mean square of 1.
        norm_tokens: normalise tokens to a root mean square of 1.

    Attributes:
        from_base: whether the projections are the base's.
    """

    def __init__(
        self,
        base: BaseFacts,
        layer: int,
        *,
        init: Literal["base", "random"] = "base",
        heads: int | None = None,
        silent: bool = True,
        nothing: bool = False,
        dropout: float = 0.0,
        norm_query: bool = True,
        norm_tokens: bool = True,
    ) -> None:
        super().__init__()
        if heads is not None and heads < 1:
            raise ValueError(f"`heads` must be at least 1, not {heads}")
        weights = base.attention(layer) if init == "base" else None
        self.from_base = weights is not None
        self.heads = (heads or base.num_heads) if weights is None else weights.num_heads
        hidden = base.hidden_size
        width = hidden if weights is None else weights.query.shape[0]
        if width % self.heads:
            raise ValueError(f"`heads` must divide {width}, not {self.heads}")
        self.query = _projection(hidden, width, weights.query if weights else None)
        self.key = _projection(hidden, width, weights.key if weights else None)
        self.value = _projection(hidden, width, weights.value if weights else None)
        copied = weights.output if weights and not silent else None
        self.output = _projection(width, hidden, torch.zeros(hidden, width) if silent else copied)
        self.nothing = nn.Parameter(torch.zeros(self.heads)) if nothing else None
        self.dropout, self.norm_query, self.norm_tokens = dropout, norm_query, norm_tokens

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What every position will attend to, each (batch, heads, tokens, dim)."""
        tokens = unit_rms(tokens) if self.norm_tokens else tokens
        return self._split(self.key(tokens)), self._split(self.value(tokens))

    def forward(
        self, hidden: Annotated[Tensor, "batch length hidden"], key: Tensor, value: Tensor,
        mask: Tensor, factored_of: FactoredMatrixOf = plain_weight,
    ) -> Annotated[Tensor, "batch length hidden"]:  # fmt: skip
        """What each position is given of the keys and values."""
        to_query, to_output = (factored_of(one) or one for one in (self.query, self.output))
        query = self._split(to_query(unit_rms(hidden) if self.norm_query else hidden))
        context = attend(
            query, key, value, mask,
            nothing=self.nothing, dropout=self.dropout if self.training else 0.0,
        )  # fmt: skip
        context = context.to(hidden.dtype)  # (batch, heads, length, dim)
        out: Tensor = to_output(context.transpose(1, 2).flatten(2))
        return out  # (batch, length, hidden)

    def folded(
        self, key: Tensor, value: Tensor, mask: Tensor, factored_of: FactoredMatrixOf
    ) -> FoldedAttention | None:
        """Keys and values with the projections in them; None where that cannot be or pay."""
        if not is_worth_folding(key, self.nothing is not None):
            return None
        query, output = factored_of(self.query), factored_of(self.output)
        if query is None or output is None:
            return None
        return fold(key, value, mask, query, output, self.nothing)

    def from_folded(
        self, hidden: Annotated[Tensor, "batch length hidden"], folded: FoldedAttention
    ) -> Annotated[Tensor, "batch length hidden"]:
        """As ``forward``, of keys and values that have the projections in them."""
        weights = folded.attention_weights(unit_rms(hidden) if self.norm_query else hidden)
        if _ever_observed:
            seen = weights.transpose(1, 2)  # (batch, heads, length, columns)
            _tell(seen if self.nothing is None else seen[..., :-1])
        return folded.weighted_sum(weights).to(hidden.dtype)

    def _split(self, values: Tensor) -> Tensor:
        batch, length, width = values.shape
        heads = values.reshape(batch, length, self.heads, width // self.heads)
        return heads.transpose(1, 2)  # (batch, heads, length, dim)


class LinearFromWeight(nn.Linear):
    """A linear layer without bias whose weight, (out, in), is given, so that none is drawn."""

    def __init__(self, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None)


def _projection(inputs: int, outputs: int, weight: Tensor | None) -> nn.Linear:
    """A linear layer without bias and with this weight; at random where that is None."""
    if weight is None:
        return nn.Linear(inputs, outputs, bias=False)
    like = torch.empty(0)  # where and as what torch makes tensors now
    return LinearFromWeight(weight.to(like.device, like.dtype).contiguous())


class CrossAttentions(nn.ModuleDict):
    """A cross-attention for each of several layers, and the memory that they share.

    Args:
        blocks: by layer.
        factored_of: the matrix of a query or output projection, where it is more than a linear
            layer.
    """

    def __init__(
        self, blocks: Mapping[int, CrossAttention], factored_of: FactoredMatrixOf = plain_weight
    ) -> None:
        super().__init__({str(layer): block for layer, block in blocks.items()})
        self._factored_of = factored_of

    def remember(self, tokens: Tokens) -> Memory:
        """Keys and values of every layer, each (batch, heads, tokens, dim), and them folded."""
        kept: dict[str, Tensor] = {}
        values = torch.where(tokens.mask.unsqueeze(-1), tokens.values, 0.0)  # 0 * NaN is NaN
        folding = not torch.is_grad_enabled() and not self.training
        for layer in self:
            block = self.at(layer)
            key, value = block.keys_and_values(values)
            kept |= {f"key.{layer}": key, f"value.{layer}": value}
            folded = block.folded(key, value, tokens.mask, self._factored_of) if folding else None
            if folded is not None:
                kept |= {f"{name}.{layer}": getattr(folded, part) for name, part in _FOLDED.items()}
        return Memory(kept, tokens.mask)

    def attend(
        self, hidden: Annotated[Tensor, "batch length hidden"], memory: Memory, layer: int
    ) -> Annotated[Tensor, "batch length hidden"]:
        """What the attention of ``layer`` gives to each position."""
        kept, block = memory.tensors, self.at(layer)
        if not torch.is_grad_enabled() and f"folded_keys.{layer}" in kept:
            return block.from_folded(
                hidden, FoldedAttention(*[kept[f"{name}.{layer}"] for name in _FOLDED])
            )
        key, value = kept[f"key.{layer}"], kept[f"value.{layer}"]
        given: Tensor = block(hidden, key, value, memory.mask, self._factored_of)
        return given

    def at(self, layer: int | str) -> CrossAttention:
        """The block of ``layer``."""
        return cast(CrossAttention, self[str(layer)])


_FOLDED = {
    "folded_keys": "keys",
    "folded_values": "values",
    "folded_filling": "filling",
    "folded_open": "open",
}
"""Names in a memory of the parts of a ``FoldedAttention``, in its order."""
