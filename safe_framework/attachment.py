"""Where a modality enters a base model: its decoder layers, and inert hooks on them.

A hook is installed once and looks up a ``ContextVar``; outside a call that carries a modality
it returns None, and the base computes what it always did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import nn
from torch.utils.hooks import RemovableHandle

from safe_framework.errors import UnsupportedBaseError

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
_NAMES = ("layers", "h", "blocks", "block", "layer")

LayerCall = tuple[tuple[Any, ...], dict[str, Any]]


class Injection(Protocol):
    """What a call does to the inputs of the decoder layers."""

    owner: str

    def enter(
        self, modality: str, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall:
        """The arguments with which ``modality`` lets decoder layer ``layer`` be called."""
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


class LayerHook:
    """A forward pre-hook that does nothing unless its owner's call is running.

    Args:
        owner: key of the SafeModel that installed it; a string, so that copies and pickles of
            a base hold no reference to the model.
        modality: name of the modality that it serves.
        layer: position of the hooked decoder layer.
    """

    def __init__(self, owner: str, modality: str, layer: int) -> None:
        self.owner, self.modality, self.layer = owner, modality, layer

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall | None:
        """Change the layer's arguments, or return None to leave the call alone."""
        injection = _ACTIVE.get()
        if injection is None or injection.owner != self.owner:
            return None
        return injection.enter(self.modality, self.layer, args, kwargs)


def install(
    owner: str, modality: str, layers: nn.ModuleList, wanted: tuple[int, ...]
) -> list[RemovableHandle]:
    """Hook the decoder layers ``wanted`` for one modality."""
    return [
        layers[layer].register_forward_pre_hook(LayerHook(owner, modality, layer), with_kwargs=True)
        for layer in wanted
    ]


def hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The hidden states among a decoder layer's arguments: the first one, or by keyword."""
    return args[0] if args else kwargs.get("hidden_states")


def with_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Any) -> LayerCall:
    """The same arguments with other hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def text_config(model: nn.Module) -> Any:
    """The part of a transformers config that describes the decoder."""
    config = model.config
    get: Callable[..., Any] | None = getattr(config, "get_text_config", None)
    return get(decoder=True) if get is not None else config


def decoder_layers(model: nn.Module, layers_path: str | None = None) -> nn.ModuleList:
    """The decoder layers of any transformers model, found by structure alone.

    Of the outermost lists of modules in the innermost decoder, the one as long as the config's
    layer count, then by usual name, then the longest.

    Args:
        model: a transformers model.
        layers_path: dotted path of the list, for a model where the rule is wrong.

    Raises:
        UnsupportedBaseError: the model holds no list of layers, or not at ``layers_path``.
    """
    if layers_path is not None:
        return _layers_at(model, layers_path)
    lists = _outermost_lists(_innermost_decoder(model))
    config = text_config(model)
    found = (getattr(config, name, None) for name in _COUNTS)
    count = next((number for number in found if isinstance(number, int)), None)
    candidates = [(name, m) for name, m in lists if len(m) == count] or lists
    if not candidates:
        raise UnsupportedBaseError(
            f"`{type(model).__name__}` holds no list of layers",
            hint="name the list by `layers_path` in [base]",
        )
    return min(candidates, key=lambda pair: (pair[0].split(".")[-1] not in _NAMES, -len(pair[1])))[
        1
    ]


def _layers_at(model: nn.Module, path: str) -> nn.ModuleList:
    try:
        found = model.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedBaseError(
            f"`{type(model).__name__}` has no module at `layers_path` = `{path}`",
            hint="print(model) shows the paths",
        ) from error
    if not isinstance(found, nn.ModuleList) or not len(found):
        raise UnsupportedBaseError(
            f"`{path}` of `{type(model).__name__}` is a {type(found).__name__}, not a ModuleList",
            hint="`layers_path` must name the list of decoder layers",
        )
    return found


def _outermost_lists(decoder: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    lists = [
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    names = [name for name, _ in lists]
    return [
        (name, module)
        for name, module in lists
        if not any(name.startswith(f"{other}.") for other in names)
    ]


def _innermost_decoder(model: nn.Module) -> nn.Module:
    """Follow ``get_decoder`` until it stops; some models return an ``lm_head`` called decoder."""
    seen: set[int] = set()
    while hasattr(model, "get_decoder") and id(model) not in seen:
        seen.add(id(model))
        inner: nn.Module | None = model.get_decoder()  # type: ignore[operator]  # a method
        if inner is None or not any(isinstance(m, nn.ModuleList) for m in inner.modules()):
            break
        model = inner
    return model
