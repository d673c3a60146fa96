"""Cross-attention from text to a modality's tokens, trained through LoRA alone.

``delta = W_o softmax(clamp(Q K^T / sqrt(d))) V`` with ``Q = W_q norm(hidden)``, ``K = W_k
norm(tokens)``, ``V = W_v norm(tokens)``. The four projections are frozen; PEFT adds trainable
low-rank pairs (Hu et al. 2022, arXiv:2106.09685). ``W_o`` is frozen at zero and its pair starts
at zero, so a fresh adapter changes nothing and a trained one stays small. Each head can also
attend to nothing: a learned score beside the tokens' whose value is zero, so that a position
which the modality does not concern can leave it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from safe_framework import AttentionWeights, BaseFacts, FusionAdapter, Memory, Tokens

_CLAMP = 50.0
_MASKED = -1e4
Target = Literal["query", "key", "value"]


class LoraFusion(FusionAdapter):
    """Gated cross-attention at chosen decoder layers, with low-rank trainable parts.

    Args:
        base: sizes of the base model, and its attention's weights.
        layers: decoder layers whose input it changes; negative ones count from the last.
        rank: of every low-rank pair.
        alpha: scale of a pair, which adds ``alpha / rank`` times its product.
        dropout: on the input of the pairs, in training.
        targets: projections that get a pair, beside the output's.
        init: ``"base"`` copies the frozen projections of each layer from the base's own
            attention there, ``"random"`` draws them; ``"base"`` falls back to random where the
            base's attention is of another kind.
        heads: of the attention where it is random; by default the base's.
    """

    def __init__(
        self,
        base: BaseFacts,
        *,
        layers: Sequence[int] = (0,),
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: Sequence[Target] = ("query", "value"),
        init: Literal["base", "random"] = "base",
        heads: int | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"`rank` must be at least 1, not {rank}")
        if heads is not None and heads < 1:
            raise ValueError(f"`heads` must be at least 1, not {heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be from 0 up to 1, not {dropout}")
        self.layers = _absolute(layers, base.num_layers)
        self.blocks = nn.ModuleDict()
        rebuilt: set[str] = set()
        for layer in self.layers:
            weights = base.attention(layer) if init == "base" else None
            block = _CrossAttention(base.hidden_size, heads or base.num_heads, weights)
            self.blocks[str(layer)] = block
            frozen = {"output"} if weights is None else {"query", "key", "value", "output"}
            rebuilt |= {f"blocks.{layer}.{name}" for name in frozen}
        self._add_pairs(rank, alpha, dropout, targets)
        names = {
            _stem(name): name
            for name, _ in self.named_parameters()
            if name.endswith("weight") and "lora_" not in name
        }
        self.rebuilt = frozenset(names[stem] for stem in rebuilt)

    def _add_pairs(self, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it; a float is fine
            lora_dropout=dropout,
            target_modules=[*targets, "output"],
        )
        inject_adapter_in_model(config, self.blocks)
        for layer in self.layers:  # PEFT freezes all that is not its own
            self._block(layer).nothing.requires_grad_(True)

    def remember(self, tokens: Tokens) -> Memory:
        """Keys and values of every fused layer, each (batch, heads, tokens, dim)."""
        kept: dict[str, Tensor] = {}
        values = torch.where(tokens.mask.unsqueeze(-1), tokens.values, 0.0)  # 0 * NaN is NaN
        for layer in self.layers:
            key, value = self._block(layer).keys_and_values(values)
            kept |= {f"key.{layer}": key, f"value.{layer}": value}
        return Memory(kept, tokens.mask)

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        """The attention's output for each position, (batch, length, hidden)."""
        key, value = memory.tensors[f"key.{layer}"], memory.tensors[f"value.{layer}"]
        delta: Tensor = self._block(layer)(hidden, key, value, memory.mask)
        return delta

    def _block(self, layer: int) -> _CrossAttention:
        return cast(_CrossAttention, self.blocks[str(layer)])


class _CrossAttention(nn.Module):
    def __init__(self, hidden: int, heads: int, weights: AttentionWeights | None) -> None:
        super().__init__()
        self.heads = heads if weights is None else weights.num_heads
        width = hidden if weights is None else weights.query.shape[0]
        if width % self.heads:
            raise ValueError(f"`heads` must divide {width}, not {self.heads}")
        self.query = nn.Linear(hidden, width, bias=False)
        self.key = nn.Linear(hidden, width, bias=False)
        self.value = nn.Linear(hidden, width, bias=False)
        self.output = nn.Linear(width, hidden, bias=False)
        self.nothing = nn.Parameter(torch.zeros(self.heads))
        nn.init.zeros_(self.output.weight)
        if weights is not None:
            with torch.no_grad():
                for name in ("query", "key", "value"):
                    getattr(self, name).weight.copy_(getattr(weights, name))

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What every position will attend to, each (batch, heads, tokens, dim)."""
        tokens = _norm(tokens)
        return self._split(self.key(tokens)), self._split(self.value(tokens))

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """The delta of each position, (batch, length, hidden)."""
        query = self._split(self.query(_norm(hidden)))  # (batch, heads, length, dim)
        scores = query.float() @ key.float().mT / query.shape[-1] ** 0.5
        scores = scores.clamp(-_CLAMP, _CLAMP).masked_fill(~mask[:, None, None], _MASKED)
        nothing = self.nothing.float()[:, None, None].expand(*scores.shape[:-1], 1)
        shares = torch.cat([scores, nothing], dim=-1).softmax(-1)[..., :-1]
        context = (shares @ value.float()).to(hidden.dtype)  # (batch, heads, length, dim)
        out: Tensor = self.output(context.transpose(1, 2).flatten(2))  # (batch, length, hidden)
        return out

    def _split(self, values: Tensor) -> Tensor:
        batch, length, width = values.shape
        heads = values.reshape(batch, length, self.heads, width // self.heads)
        return heads.transpose(1, 2)  # (batch, heads, length, dim)


def _norm(values: Tensor) -> Tensor:
    """Root-mean-square normalisation without weights, as a layer's own attention expects."""
    return nn.functional.rms_norm(values, values.shape[-1:])


def _absolute(layers: Sequence[int], count: int) -> tuple[int, ...]:
    if not layers:
        raise ValueError("`layers` must name at least one decoder layer")
    found = sorted({layer + count if layer < 0 else layer for layer in layers})
    if found[0] < 0 or found[-1] >= count:
        raise ValueError(f"`layers` must be between {-count} and {count - 1}, not {list(layers)}")
    return tuple(found)


def _stem(name: str) -> str:
    """``blocks.4.query.base_layer.weight`` -> ``blocks.4.query``."""
    return ".".join(name.split(".")[:3])
