"""Load and freeze a base model, and tell fusion adapters what they may know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safe_framework.attachment import LayerHook, hidden_of, text_config
from safe_framework.errors import UnsupportedBaseError
from safe_framework.shapes import AttentionWeights, BaseFacts

if TYPE_CHECKING:
    from safe_framework._recipe import BaseSpec

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def load_base(spec: BaseSpec, *, trust_remote_code: bool = False) -> tuple[nn.Module, Any]:
    """The model and the tokenizer (or processor) that ``[base]`` of a recipe names.

    Args:
        spec: a hub id, a folder or the name of a card, and how to load it.
        trust_remote_code: let the checkpoint run code of its own; off, and no recipe can
            turn it on.
    """
    from transformers import AutoTokenizer

    from safe_framework.checkpoints import locate, quietly

    place = locate(spec.model)
    common = {"revision": spec.revision} if spec.revision else {}
    if spec.gguf_file:
        common["gguf_file"] = spec.gguf_file
    options: dict[str, Any] = {"dtype": spec.dtype, "trust_remote_code": trust_remote_code}
    if spec.attn_implementation:
        options["attn_implementation"] = spec.attn_implementation
    with quietly():
        kind = _model_class(place, common, trust_remote_code)
        model = kind.from_pretrained(place, **common, **options)
        tokenizer = AutoTokenizer.from_pretrained(
            place, trust_remote_code=trust_remote_code, **common
        )
    return model, tokenizer


def _model_class(place: str, common: dict[str, str], trust_remote_code: bool) -> Any:
    """The auto class that maps this checkpoint's type: image-text first, then causal."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code, **common)
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def freeze(base: nn.Module) -> nn.Module:
    """The same model, in evaluation mode and without gradients."""
    return base.eval().requires_grad_(False)


def facts_of(base: nn.Module, layers: nn.ModuleList) -> BaseFacts:
    """Sizes of the base, and copies of its attention projections where they are plain."""
    config = text_config(base)
    heads = int(getattr(config, "num_attention_heads", 1))
    return BaseFacts(
        int(config.hidden_size), len(layers), heads, lambda layer: _attention(layers[layer], heads)
    )


def _attention(layer: nn.Module, heads: int) -> AttentionWeights | None:
    """The layer's four projections, or None where it has no plain ones of the right shape."""
    attention = getattr(layer, "self_attn", None)
    found = [getattr(attention, name, None) for name in _PROJECTIONS]
    linears = [module for module in found if isinstance(module, nn.Linear)]
    if len(linears) < len(_PROJECTIONS) or any(linear.weight.is_meta for linear in linears):
        return None
    query, key, value, output = (linear.weight.detach() for linear in linears)
    scale = _norm_scale(layer, query.shape[1])
    query, key, value = query * scale, key * scale, value * scale
    width = query.shape[0]
    if width % heads or width % key.shape[0] or output.shape[1] != width:
        return None
    head = width // heads
    return AttentionWeights(
        query=query,
        key=_repeat_heads(key, width, head),
        value=_repeat_heads(value, width, head),
        output=output.clone(),
        num_heads=heads,
    )


def _norm_scale(layer: nn.Module, hidden: int) -> Tensor | float:
    """What the layer's own normalisation multiplies its attention's input with."""
    weight = getattr(getattr(layer, "input_layernorm", None), "weight", None)
    return weight.detach() if isinstance(weight, Tensor) and weight.shape == (hidden,) else 1.0


def _repeat_heads(weight: Tensor, width: int, head: int) -> Tensor:
    """Grouped key or value heads, each repeated for the query heads that share it."""
    grouped = weight.reshape(-1, head, weight.shape[1])  # (groups, head, hidden)
    return grouped.repeat_interleave(width // weight.shape[0], dim=0).flatten(0, 1)


def probe(base: nn.Module, layers: nn.ModuleList) -> None:
    """Run the base once on two tokens and see that its layers can be served.

    Raises:
        UnsupportedBaseError: a layer never ran, or its hidden states are of another kind than
            (batch, length, hidden); the message says what was seen.
    """
    seen: dict[int, Any] = {}
    handles = [
        layer.register_forward_pre_hook(_Look(number, seen), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    try:
        with torch.no_grad():
            base(**_two_tokens(base))
    except Exception as error:
        raise UnsupportedBaseError(
            f"`{type(base).__name__}` failed on two plain tokens: {type(error).__name__}: {error}",
            hint="a base must run on `input_ids` alone",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    _judge(base, seen, len(layers))


class _Look:
    def __init__(self, layer: int, seen: dict[int, Any]) -> None:
        self.layer, self.seen = layer, seen

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen.setdefault(self.layer, hidden_of(args, kwargs))


def _two_tokens(base: nn.Module) -> dict[str, Tensor]:
    device = next(base.parameters()).device
    tokens = torch.ones(1, 2, dtype=torch.long, device=device)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if getattr(base.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens
    return inputs


def _judge(base: nn.Module, seen: dict[int, Any], count: int) -> None:
    name, hidden = type(base).__name__, int(text_config(base).hidden_size)
    if missed := [layer for layer in range(count) if layer not in seen]:
        raise UnsupportedBaseError(
            f"`{name}` ran without calling its decoder layers {missed}",
            hint="name the list of layers that really run by `layers_path` in [base]",
        )
    for layer, states in seen.items():
        shape = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
        if shape != (1, 2, hidden) or not states.is_floating_point():
            raise UnsupportedBaseError(
                f"decoder layer {layer} of `{name}` takes {shape} where (1, 2, {hidden}) was "
                "expected: (batch, length, hidden)",
                hint="this shape of hidden states is not supported",
            )


def hooks_of(base: nn.Module) -> list[LayerHook]:
    """Every hook that a SafeModel has left on ``base``."""
    return [
        hook
        for module in base.modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, LayerHook)
    ]
