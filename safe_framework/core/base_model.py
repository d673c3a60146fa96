"""Load and freeze a base model, and tell fusion adapters what they may know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safe_framework.core.base_change import ChangeHook
from safe_framework.core.base_errors import base_errors
from safe_framework.core.layer_discovery import LayerStack, text_config
from safe_framework.core.layer_hooks import EmbeddingHook, LayerHook, OutputHook
from safe_framework.errors import UnsupportedBaseError
from safe_framework.interfaces.types import AttentionWeights, BaseFacts
from safe_framework.utils.torch_private import forward_hooks, forward_pre_hooks

if TYPE_CHECKING:
    pass

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def freeze(base: nn.Module) -> nn.Module:
    """The same model, in evaluation mode and without gradients."""
    if any(module.training for module in base.modules()):  # a loaded one is in evaluation mode
        base.eval()
    return base.requires_grad_(False)


def base_facts(base: nn.Module, stack: LayerStack, *, meta: bool = False) -> BaseFacts:
    """Sizes of the base, and copies of its attention projections where they are plain.

    Args:
        base: a transformers model.
        stack: its layers.
        meta: the base was loaded without its weights, so that projections on the meta device
            have shapes and no values; else a projection there is one that is offloaded.
    """
    layers, heads = stack.of(base), _heads(base, stack.hidden_size)

    def attention(layer: int) -> AttentionWeights | None:
        """Copies of a layer's attention projections; None where they are not plain."""
        return _attention(layers[layer], heads, meta)

    return BaseFacts(stack.hidden_size, stack.count, heads, attention)


def input_device(base: nn.Module) -> torch.device:
    """Where a call's inputs go: the base's first weight that is not offloaded."""
    hook = getattr(base, "_hf_hook", None)  # accelerate's
    if (device := getattr(hook, "execution_device", None)) is not None:
        return torch.device(device)
    devices = (parameter.device for parameter in base.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def generation_pad_id(base: nn.Module) -> int:
    """The id with which ``generate`` fills up texts that have ended."""
    config: Any = getattr(base, "generation_config", base.config)
    return next((i for i in (config.pad_token_id, config.eos_token_id) if type(i) is int), 0)


def _heads(base: nn.Module, hidden: int) -> int:
    """The config's attention heads, or what comes nearest and divides the hidden size."""
    named = getattr(text_config(base), "num_attention_heads", 1)
    wanted = named if isinstance(named, int) and named > 0 else 1
    return next(heads for heads in range(min(wanted, hidden), 0, -1) if hidden % heads == 0)


def _attention(layer: nn.Module, heads: int, meta: bool) -> AttentionWeights | None:
    """The layer's four projections, or None where it has no plain ones of the right shape."""
    attention = getattr(layer, "self_attn", None)
    found = [getattr(attention, name, None) for name in _PROJECTIONS]
    linears = [module for module in found if isinstance(module, nn.Linear)]
    if len(linears) < len(_PROJECTIONS) or not all(meta or _readable(linear) for linear in linears):
        return None
    query, key, value, output = (linear.weight.detach() for linear in linears)
    width = query.shape[0]
    head = width // heads
    if width % heads or width % key.shape[0] or key.shape[0] % head or output.shape[1] != width:
        return None
    scale = _norm_scale(layer, query.shape[1])
    return AttentionWeights(
        query=query * scale,
        key=_repeat_heads(key, scale, width, head),
        value=_repeat_heads(value, scale, width, head),
        output=output,
        num_heads=heads,
    )


def _readable(linear: nn.Linear) -> bool:
    """Whether the weight is here (not offloaded) and in numbers (not quantised)."""
    return not linear.weight.is_meta and linear.weight.is_floating_point()


def _norm_scale(layer: nn.Module, hidden: int) -> Tensor | float:
    """What the layer's own normalisation multiplies its attention's input with."""
    norm = getattr(layer, "input_layernorm", None)
    weight = getattr(norm, "weight", None)
    if norm is None or not isinstance(weight, Tensor) or weight.shape != (hidden,):
        return 1.0
    weight = weight.detach()
    if weight.is_meta:  # on the meta device, which has shapes and no values
        return weight
    return 1 + weight if _adds_one(norm, weight) else weight


def _adds_one(norm: nn.Module, weight: Tensor) -> bool:
    """Whether a normalisation multiplies with ``1 + weight``, as Gemma's does, not with ``weight``.

    Its bias, if it has one, cancels out of the difference of two opposite inputs.
    """
    wave = torch.ones_like(weight)
    wave[1::2] = -1  # of mean 0, where the width is even, and of root mean square 1
    try:
        with torch.no_grad(), base_errors():
            up, down = norm(torch.stack([wave, -wave])[None])[0]  # each (hidden,)
    except UnsupportedBaseError:  # a norm that takes more than its input says nothing of itself
        return False
    scale = (up - down) / 2 * wave
    return bool((scale - weight - 1).norm() < (scale - weight).norm())


def _repeat_heads(weight: Tensor, scale: Tensor | float, width: int, head: int) -> Tensor:
    """Grouped key or value heads, scaled, each repeated for the query heads that share it."""
    grouped = weight.reshape(-1, 1, head, weight.shape[1])  # (groups, 1, head, hidden)
    return (grouped.expand(-1, width // len(weight), -1, -1) * scale).flatten(0, 2)


def installed_hooks(
    base: nn.Module,
) -> list[LayerHook | EmbeddingHook | OutputHook | ChangeHook]:
    """Every hook that a SafeModel has left on ``base``."""
    return [
        hook
        for module in base.modules()
        for hook in (*forward_pre_hooks(module).values(), *forward_hooks(module).values())
        if isinstance(hook, (LayerHook, EmbeddingHook, OutputHook, ChangeHook))
    ]
