"""How a modality enters a base model: inert hooks on its layers.

A hook is installed once and looks up a ``ContextVar``; outside a call that carries a modality
it returns None, and the base computes what it always did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from safe_framework.core.base_change_context import changed_call

LayerCall = tuple[tuple[Any, ...], dict[str, Any]]


class Injection(Protocol):
    """What a call does to the inputs of a base's layers."""

    owner: str

    def enter(
        self, modality: str, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall:
        """The arguments with which ``modality`` lets layer ``layer`` be called."""
        ...

    def embed(self, modality: str, ids: object, embedded: Tensor) -> Tensor | None:
        """What a look-up of ``ids`` gives with ``modality``'s markers, or None if it has none."""
        ...


_ACTIVE: ContextVar[Injection | None] = ContextVar("safe_framework_injection", default=None)


@contextmanager
def active(injection: Injection | None) -> Iterator[None]:
    """Let ``injection`` act on every hooked layer called in this context, and nothing else."""
    token = _ACTIVE.set(injection)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def hearing() -> bool:
    """Whether a call that carries a modality or runs a changed base is running in this context."""
    return _ACTIVE.get() is not None or changed_call() is not None


class LayerHook:
    """A forward pre-hook that does nothing unless its owner's call is running.

    Args:
        owner: key of the SafeModel that installed it; a string, so that copies and pickles of
            a base hold no reference to the model.
        modality: name of the modality that it serves.
        layer: position of the hooked layer.
    """

    def __init__(self, owner: str, modality: str, layer: int) -> None:
        self.owner, self.modality, self.layer = owner, modality, layer

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall | None:
        """Change the layer's arguments, or return None to leave the call alone."""
        if torch.compiler.is_dynamo_compiling():
            return None  # a compiled graph is always the base's own, whoever's hooks were traced
        injection = _ACTIVE.get()
        if injection is None or injection.owner != self.owner:
            return None
        return injection.enter(self.modality, self.layer, args, kwargs)


def install(
    owner: str, modality: str, layers: nn.ModuleList, wanted: tuple[int, ...]
) -> list[RemovableHandle]:
    """Hook the layers ``wanted`` for one modality."""
    return [
        layers[layer].register_forward_pre_hook(LayerHook(owner, modality, layer), with_kwargs=True)
        for layer in wanted
    ]


class EmbeddingHook:
    """A forward hook on an embedding, as inert as a ``LayerHook``.

    Args:
        owner: key of the SafeModel that installed it.
        modality: name of the modality whose markers it puts in.
    """

    def __init__(self, owner: str, modality: str) -> None:
        self.owner, self.modality = owner, modality

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """Change what was looked up, or return None to leave it alone."""
        if torch.compiler.is_dynamo_compiling():
            return None
        injection = _ACTIVE.get()
        if injection is None or injection.owner != self.owner:
            return None
        return injection.embed(self.modality, args[0] if args else kwargs.get("input"), output)


def install_embeddings(
    owner: str, modality: str, embeddings: Sequence[nn.Module]
) -> list[RemovableHandle]:
    """Hook every embedding for the markers of one modality."""
    hook = EmbeddingHook(owner, modality)
    return [module.register_forward_hook(hook, with_kwargs=True) for module in embeddings]


def hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The hidden states among a layer's arguments: the first one, or by keyword."""
    return args[0] if args else kwargs.get("hidden_states")


def with_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Any) -> LayerCall:
    """The same arguments with other hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}
