"""Other ways to run a layer while a sense is heard; the layer and its module tree stay.

A ``LayerForward`` stands as ``forward`` in a layer's own attributes. In every other call, and in
copies of the layer, it is the layer's own forward. A layer's hooks run outside of it, so nothing
that is compiled or recomputed holds a modality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from safe_framework.core.base_change_context import acting, changed_call
from safe_framework.core.layer_hooks_attachment import hearing
from safe_framework.errors import UnsupportedBaseError

Forward = Callable[..., Any]

RECOMPUTING: ContextVar[Mapping[str, Any] | None] = ContextVar(
    "safe_framework_recomputing", default=None
)
"""Options of ``torch.utils.checkpoint`` in a call that recomputes its layers."""

StandIn = Callable[[tuple[Any, ...], dict[str, Any]], Any]

STANDING_IN: ContextVar[Mapping[LayerForward, StandIn]] = ContextVar(
    "safe_framework_standing_in", default=MappingProxyType({})
)
"""What is done instead of a layer's forward in a call that knows its result beforehand."""


class LayerForward:
    """The forward of one layer.

    Attributes:
        plain: what the layer did before.
        compiled: what it does where a sense is heard; None for ``plain``.
    """

    def __init__(self, plain: Forward) -> None:
        self.plain = plain
        self.compiled: Forward | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns."""
        if torch.compiler.is_dynamo_compiling() or not hearing():
            return self.plain(*args, **kwargs)
        if (stand_in := STANDING_IN.get().get(self)) is not None:
            return stand_in(args, kwargs)
        compiled = self.compiled if changed_call() is None else None  # its hooks are not in it
        forward, options = compiled or self.plain, RECOMPUTING.get()
        if options is None or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return recomputed(forward, args, kwargs, options)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the compiled code, which belongs to the weights of this layer alone."""
        return {"plain": self.plain, "compiled": None}


def recomputed(
    forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], options: Mapping[str, Any]
) -> Any:
    """Call a layer without keeping its activations, if a gradient has to go through it.

    Every tensor that needs a gradient is an argument of the checkpoint, wherever the layer takes
    it, since the reentrant kind gives a gradient to nothing else.

    Raises:
        UnsupportedBaseError: the layer was handed a cache, which would be filled twice.
    """
    from transformers import Cache

    leaves, shape = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not places:
        return forward(*args, **kwargs)
    if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
        raise UnsupportedBaseError(
            "a layer was handed a cache of keys and values while its activations are recomputed",
            hint="call gradient_checkpointing_disable()",
        )
    moving = [leaves[place] for place in places]
    changed = changed_call()  # which has ended when the backward pass calls again

    def again(*tensors: Tensor) -> Any:
        """The same call with these tensors in the places of its own."""
        filled = dict(enumerate(leaves)) | dict(zip(places, tensors, strict=True))
        given, named = tree_unflatten(list(filled.values()), shape)
        with acting(changed):
            return forward(*given, **named)

    return checkpoint(again, *moving, **options)


def take_over(layer: nn.Module) -> LayerForward:
    """The ``LayerForward`` of a layer, put in place if there is none."""
    found = vars(layer).get("forward")
    if not isinstance(found, LayerForward):
        found = LayerForward(layer.forward)
        layer.forward = found
    return found


def give_back(layer: nn.Module) -> None:
    """Let a layer have the attributes it had, unless it is compiled or wrapped once more."""
    found = vars(layer).get("forward")
    if isinstance(found, LayerForward) and found.compiled is None:
        del layer.forward
        if layer.forward != found.plain:  # it was an attribute before, as accelerate sets it
            layer.forward = found.plain
