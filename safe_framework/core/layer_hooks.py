"""How a modality enters a base: inert hooks on its layers, and other ways to run a layer.

A hook is installed once and looks up a ``ContextVar``; outside a call that carries a modality it
returns None, and the base computes what it always did. A ``PatchedForward`` stands as ``forward``
in a layer's own attributes. In every other call, and in copies of the layer, it is the layer's own
forward. A layer's hooks run outside of it, so nothing that is compiled or recomputed holds a
modality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from safe_framework.core.base_change import changed_call, use_changed_base
from safe_framework.errors import UnsupportedBaseError

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
def use_injection(injection: Injection | None) -> Iterator[None]:
    """Let ``injection`` act on every hooked layer called in this context, and nothing else."""
    token = _ACTIVE.set(injection)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def modality_active() -> bool:
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


class Watcher(Protocol):
    """What a call is told of the base's layers once they have run."""

    owner: str

    def leave(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> Any:
        """What the base is given for the output of layer ``layer``; None for that output."""
        ...


_WATCHING: ContextVar[Watcher | None] = ContextVar("safe_framework_watcher", default=None)


@contextmanager
def use_watcher(watcher: Watcher) -> Iterator[None]:
    """Let ``watcher`` see what every watched layer gives that is called in this context."""
    token = _WATCHING.set(watcher)
    try:
        yield
    finally:
        _WATCHING.reset(token)


class OutputHook:
    """A forward hook on a layer, as inert as a ``LayerHook``.

    Args:
        owner: key of the SafeModel that installed it.
        layer: position of the hooked layer.
    """

    def __init__(self, owner: str, layer: int) -> None:
        self.owner, self.layer = owner, layer

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Change what the layer gave, or return None to leave it alone."""
        if torch.compiler.is_dynamo_compiling():
            return None
        watcher = _WATCHING.get()
        if watcher is None or watcher.owner != self.owner:
            return None
        return watcher.leave(self.layer, module, args, kwargs, output)


class HookSet:
    """The hooks of one SafeModel on its base.

    Args:
        owner: key of the model.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._handles: dict[str, list[RemovableHandle]] = {}
        self._watched: dict[int, RemovableHandle] = {}

    def add(
        self,
        modality: str,
        layers: nn.ModuleList,
        wanted: Sequence[int],
        embeddings: Sequence[nn.Module] = (),
    ) -> None:
        """Hook the layers ``wanted`` for a modality, and the embeddings for its markers."""
        handles = [
            layers[layer].register_forward_pre_hook(
                LayerHook(self.owner, modality, layer), with_kwargs=True
            )
            for layer in wanted
        ]
        hook = EmbeddingHook(self.owner, modality)
        handles += [module.register_forward_hook(hook, with_kwargs=True) for module in embeddings]
        self._handles[modality] = handles

    def watch(self, layers: nn.ModuleList, first: int) -> None:
        """Let a watcher see what the layers from ``first`` on give, as long as a modality is there.

        Only models of which a relevance head decides are watched.
        """
        for number in range(first, len(layers)):
            if number not in self._watched:
                hook = OutputHook(self.owner, number)
                handle = layers[number].register_forward_hook(hook, with_kwargs=True)
                self._watched[number] = handle

    def remove(self, modality: str) -> None:
        """Take the hooks of a modality off the base; with the last one, those of watchers."""
        for handle in self._handles.pop(modality):
            handle.remove()
        if not self._handles:
            for handle in self._watched.values():
                handle.remove()
            self._watched.clear()


@contextmanager
def registered(*handles: RemovableHandle) -> Iterator[None]:
    """Within the block, these hooks are on their modules; after it they are removed."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def get_hidden_states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The hidden states among a layer's arguments: the first one, or by keyword."""
    return args[0] if args else kwargs.get("hidden_states")


def set_hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Any) -> LayerCall:
    """The same arguments with other hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def has_cache(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a layer is handed a cache of keys and values."""
    from transformers import Cache

    return any(isinstance(value, Cache) for value in (*args, *kwargs.values()))


Forward = Callable[..., Any]

RECOMPUTING: ContextVar[Mapping[str, Any] | None] = ContextVar(
    "safe_framework_recomputing", default=None
)
"""Options of ``torch.utils.checkpoint`` in a call that recomputes its layers."""

Replacement = Callable[[tuple[Any, ...], dict[str, Any]], Any]

REPLACEMENTS: ContextVar[Mapping[PatchedForward, Replacement]] = ContextVar(
    "safe_framework_standing_in", default=MappingProxyType({})
)
"""What is done instead of a layer's forward in a call that knows its result beforehand."""

_REPLACED_ALWAYS: ContextVar[bool] = ContextVar("safe_framework_replaced_always", default=False)


@contextmanager
def use_replacements(
    replacements: Mapping[PatchedForward, Replacement], *, always: bool = False
) -> Iterator[None]:
    """Within the block, these layers do something else in a call that carries a modality.

    Args:
        replacements: by the patched forward of a layer.
        always: whether in a call without a modality too.
    """
    tokens = REPLACEMENTS.set(replacements), _REPLACED_ALWAYS.set(always)
    try:
        yield
    finally:
        REPLACEMENTS.reset(tokens[0])
        _REPLACED_ALWAYS.reset(tokens[1])


class PatchedForward:
    """The forward of one layer.

    Attributes:
        plain: what the layer did before.
        compiled: what it does where a modality is active; None for ``plain``.
    """

    def __init__(self, plain: Forward) -> None:
        self.plain = plain
        self.compiled: Forward | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns."""
        if torch.compiler.is_dynamo_compiling():
            return self.plain(*args, **kwargs)
        active = modality_active()
        stand_in = REPLACEMENTS.get().get(self)
        if stand_in is not None and (active or _REPLACED_ALWAYS.get()):
            return stand_in(args, kwargs)
        if not active:
            return self.plain(*args, **kwargs)
        compiled = self.compiled if changed_call() is None else None  # its hooks are not in it
        forward, options = compiled or self.plain, RECOMPUTING.get()
        if options is None or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return recompute(forward, args, kwargs, options)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the compiled code, which belongs to the weights of this layer alone."""
        return {"plain": self.plain, "compiled": None}


def recompute(
    forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], options: Mapping[str, Any]
) -> Any:
    """Call a layer without keeping its activations, if a gradient has to go through it.

    Every tensor that needs a gradient is an argument of the checkpoint, wherever the layer takes
    it, since the reentrant kind gives a gradient to nothing else.

    Raises:
        UnsupportedBaseError: the layer was handed a cache, which would be filled twice.
    """
    leaves, shape = tree_flatten((args, kwargs))
    moving_at = [
        i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    if not moving_at:
        return forward(*args, **kwargs)
    if has_cache(args, kwargs):
        raise UnsupportedBaseError(
            "a layer was handed a cache of keys and values while its activations are recomputed",
            hint="call gradient_checkpointing_disable()",
        )
    moving = [leaves[index] for index in moving_at]
    changed = changed_call()  # which has ended when the backward pass calls again

    def again(*tensors: Tensor) -> Any:
        """The same call with these tensors instead of its own."""
        filled = dict(enumerate(leaves)) | dict(zip(moving_at, tensors, strict=True))
        given, named = tree_unflatten(list(filled.values()), shape)
        with use_changed_base(changed):
            return forward(*given, **named)

    return checkpoint(again, *moving, **options)


def patch_forward(layer: nn.Module) -> PatchedForward:
    """The ``PatchedForward`` of a layer, put in place if there is none."""
    found = vars(layer).get("forward")
    if not isinstance(found, PatchedForward):
        found = PatchedForward(layer.forward)
        layer.forward = found
    return found


def restore_forward(layer: nn.Module) -> None:
    """Let a layer have the attributes it had, unless it is compiled or wrapped once more."""
    found = vars(layer).get("forward")
    if isinstance(found, PatchedForward) and found.compiled is None:
        del layer.forward
        if layer.forward != found.plain:  # it was an attribute before, as accelerate sets it
            layer.forward = found.plain
