"""Cross-attention from text to a modality's tokens, trained through LoRA alone.

``delta = W_o softmax(clamp(Q K^T / sqrt(d))) V`` with ``Q = W_q norm(hidden)``, ``K = W_k
norm(tokens)``, ``V = W_v norm(tokens)``. The four projections are frozen; PEFT adds trainable
low-rank pairs (LoRA, Hu et al. 2021, arXiv:2106.09685; rsLoRA, Kalajdzievski 2023,
arXiv:2312.03732; DoRA, Liu et al. 2024, arXiv:2402.09353). ``W_o`` is frozen at zero and its pair
starts at zero, so a fresh adapter changes nothing and a trained one stays small. Each head can
also attend to nothing: a learned score beside the tokens' whose value is zero, so that a position
which the modality does not concern can leave it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from safe_framework import BaseFacts, FusionAdapter, Memory, Tokens
from safe_framework.attention import CrossAttention, CrossAttentions, LinearFromWeight
from safe_framework.attention.folded import FactoredMatrix, LowRankFactor, has_hooks, plain_weight
from safe_framework.interfaces.fusion import chosen_layers
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio

Target = Literal["query", "key", "value"]

_PAIR = "default"  # PEFT's name for the pair of a projection that has one


class LoraFusion(FusionAdapter):
    """Gated cross-attention at chosen decoder layers, with low-rank trainable parts.

    Args:
        base: sizes of the base model, and its attention's weights.
        layers: decoder layers whose input it changes; negative ones count from the last, and
            fractions between 0 and 1 are parts of the depth.
        rank: of every low-rank pair.
        alpha: scale of a pair, which adds ``alpha / rank`` times its product.
        dropout: on the input of the pairs, in training.
        targets: projections that get a pair, beside the output's.
        rslora: scale pairs by ``alpha / sqrt(rank)``, so that a high rank learns as fast.
        dora: let the targets learn the length of each of their rows apart from its direction.
        init: ``"base"`` copies the frozen projections of each layer from the base's own
            attention there, ``"random"`` draws them; ``"base"`` falls back to random where the
            base's attention is of another kind.
        heads: of the attention where it is random; by default the base's.
    """

    def __init__(
        self,
        base: BaseFacts,
        *,
        layers: Sequence[int | float] = (0,),
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: Sequence[Target] = ("query", "value"),
        rslora: bool = False,
        dora: bool = False,
        init: Literal["base", "random"] = "base",
        heads: int | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"`rank` must be at least 1, not {rank}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be from 0 up to 1, not {dropout}")
        if dora and not targets:
            raise ValueError("`dora` must have at least one projection in `targets`")
        self.layers = chosen_layers(layers, base.num_layers)
        self.blocks = CrossAttentions(
            {
                layer: CrossAttention(base, layer, init=init, heads=heads, nothing=True)
                for layer in self.layers
            },
            _factored,
        )
        for block in map(self.blocks.at, self.blocks):
            block.output = _Zero(block.output.weight)
        # DoRA divides by a projection's norm, so that the output, which is zero, cannot have it.
        groups = (
            [(targets, True), (("output",), False)] if dora else [((*targets, "output"), False)]
        )
        for names, decomposed in groups:
            self._add_pairs(names, rank, alpha, dropout, rslora, decomposed)
        for name, parameter in self.named_parameters():  # what was copied or drawn stays frozen
            parameter.requires_grad_("lora_" in name or name.endswith(".nothing"))
        self.rebuilt = frozenset(filter(self._is_rebuilt, dict(self.named_parameters())))

    def _add_pairs(
        self,
        names: Sequence[str],
        rank: int,
        alpha: float,
        dropout: float,
        rslora: bool,
        dora: bool,
    ) -> None:
        set_aside_broken_torchaudio()
        from peft import LoraConfig
        from peft.tuners.lora import Linear as LoraLinear

        config = LoraConfig(lora_dropout=dropout, use_rslora=rslora, use_dora=dora)
        for block in map(self.blocks.at, self.blocks):
            for name, projection in list(block.named_children()):
                if name in names:
                    pair = LoraLinear(
                        projection,
                        _PAIR,
                        config=config,
                        r=rank,
                        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it; a float is fine
                    )
                    setattr(block, name, pair)

    def _is_rebuilt(self, name: str) -> bool:
        """Whether a parameter, such as ``blocks.4.query.base_layer.weight``, follows from the base.

        The output's frozen part is zero; the other three may be the base's.
        """
        _, layer, projection, *rest = name.split(".")
        frozen = bool(rest) and "lora_" not in name
        return frozen and (projection == "output" or self.blocks.at(layer).from_base)

    def remember(self, tokens: Tokens) -> Memory:
        """Keys and values of every fused layer, each (batch, heads, tokens, dim)."""
        return self.blocks.remember(tokens)

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        """The attention's output for each position, (batch, length, hidden)."""
        return self.blocks.attend(hidden, memory, layer)


class _Zero(LinearFromWeight):
    """A projection that gives nothing: its weight is zero and stays so."""


def _factored(projection: nn.Module) -> FactoredMatrix | None:
    """A projection's frozen matrix and its pairs; None where they are more than a sum."""
    from peft.tuners.lora import Linear as LoraLinear

    if not isinstance(projection, LoraLinear):
        return plain_weight(projection)
    if projection.disable_adapters or projection.lora_variant or has_hooks(projection):
        return None
    frozen = projection.get_base_layer()
    whole = plain_weight(frozen)
    if whole is None or projection.merged:
        return whole
    names = [name for name in projection.active_adapters if name in projection.lora_A]
    pairs = [_pair(projection, name, whole.full) for name in names]
    if not all(pairs):
        return None
    return FactoredMatrix(
        whole.full, tuple(filter(None, pairs)), full_is_zero=isinstance(frozen, _Zero)
    )


def _pair(projection: Any, name: str, full: Tensor) -> LowRankFactor | None:
    """What PEFT adds under this name; None if it does more than multiply, or in another dtype."""
    wide, narrow = projection.lora_B[name], projection.lora_A[name]
    dropout, up, down = projection.lora_dropout[name], wide.weight, narrow.weight
    if projection.lora_bias[name] or has_hooks(wide, narrow, dropout):
        return None
    dropping = dropout.training and not isinstance(dropout, nn.Identity)
    if dropping or not full.dtype == up.dtype == down.dtype:
        return None
    return LowRankFactor(up, down, projection.scaling[name])
