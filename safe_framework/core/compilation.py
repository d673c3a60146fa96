"""``torch.compile`` for a base with modalities, such that no graph can be stale.

torch does not guard a compiled graph on hooks, and may run one that was traced before they were
installed, or for another model of the class. So no graph here holds a modality: calls without
one run the base compiled as a whole, exactly as if it had never been attached; calls with one run
layer by layer, each layer compiled, and the hooks between them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import nn

from safe_framework.core.base_model import input_device
from safe_framework.core.layer_hooks import (
    PatchedForward,
    modality_active,
    patch_forward,
    restore_forward,
)
from safe_framework.errors import UnsupportedBaseError
from safe_framework.utils.torch_private import compiled_call, set_compiled_call, uncompiled_call

_VARIANTS = 16
"""Graphs that one layer may need: shapes, grad modes, kinds of cache."""


def compile_layers(base: nn.Module, layers: nn.ModuleList, **options: Any) -> None:
    """Compile a base in place, whole and layer by layer; its module tree and weights stay.

    Args:
        base: with hooks or without.
        layers: of the base.
        **options: of ``torch.compile``.
    """
    _allow_graphs(_VARIANTS * len(layers))
    set_compiled_call(base, CompiledCall(base, options))
    options_of_layer: dict[str, Any] = {**_ISOLATED, **options}
    for layer in layers:
        forward = patch_forward(layer)
        forward.compiled = torch.compile(forward.plain, **options_of_layer)


class NotCompiled(UserWarning):
    """``torch.compile`` was given a SafeModel, which it leaves as it is."""


_eagerly: Callable[..., Any] | None = None


def prepare_to_stay_eager() -> None:
    """Let a SafeModel that is given to ``torch.compile`` run as it is, as a Trainer's flag does.

    Said beforehand, as nothing of torch's compiler can be made while it traces.
    """
    global _eagerly
    if _eagerly is None:
        _eagerly = torch.compiler.disable(_run)  # type: ignore[no-untyped-call]  # torch's own


def run_eagerly(method: Callable[..., Any], args: Sequence[Any], inputs: Mapping[str, Any]) -> Any:
    """Call a method of a SafeModel, without a graph around it where one is being traced."""
    if torch.compiler.is_dynamo_compiling() and _eagerly is not None:
        return _eagerly(method, args, inputs)
    return method(*args, **inputs)


def _run(method: Callable[..., Any], args: Sequence[Any], inputs: Mapping[str, Any]) -> Any:
    warnings.warn(
        "`torch.compile(model)` leaves a SafeModel as it is, since no graph may enclose its hooks\n"
        "hint: call safe_framework.compile(model) instead",
        NotCompiled,
        stacklevel=2,
    )
    return method(*args, **inputs)


def uncompile(base: nn.Module, layers: nn.ModuleList) -> None:
    """Undo ``compile_layers``; what others have compiled stays."""
    if isinstance(compiled_call(base), CompiledCall):
        set_compiled_call(base, None)
    for layer in layers:
        forward = vars(layer).get("forward")
        if isinstance(forward, PatchedForward):
            forward.compiled = None
            restore_forward(layer)


def check_not_compiled(base: nn.Module, paths: Sequence[str]) -> None:
    """See that no graph that others have compiled encloses layers at one of ``paths``.

    Raises:
        UnsupportedBaseError: one does, and would run without the hooks.
    """
    lists = [base.get_submodule(path) for path in paths]
    around = list(_enclosing(base, {id(found) for found in lists}))
    layers = [layer for found in lists for layer in found.children()]
    wrapped = [module for module in around if "_orig_mod" in dict(module.named_children())]
    graphs = [
        module
        for module in around + layers
        if not isinstance(compiled_call(module), CompiledCall | None)
    ]
    if wrapped or graphs:
        raise UnsupportedBaseError(
            f"`{type((wrapped + graphs)[0]).__name__}` is compiled already",
            hint="attach to the base as it was, then call safe_framework.compile(model)",
        )


def _enclosing(module: nn.Module, wanted: Set[int]) -> Iterator[nn.Module]:
    """This module and those within it that are, or hold, one of the wanted ones."""
    inner = [found for child in module.children() for found in _enclosing(child, wanted)]
    if inner or id(module) in wanted:
        yield module
        yield from inner


def keep_uncompiled(base: nn.Module) -> dict[str, bool]:
    """What keeps ``generate`` from compiling a decoding step by itself, which would run no hook."""
    return {"disable_compile": True} if hasattr(base, "get_compiled_call") else {}


def compiles(base: nn.Module, inputs: Mapping[str, Any], generating: bool) -> bool:
    """Whether the base runs a call compiled where no modality is on, so that its bits are others.

    Args:
        base: that is called.
        inputs: of the call, by keyword.
        generating: whether ``generate`` is called, which compiles by itself where a cache that
            does not grow lies on an accelerator.
    """
    if compiled_call(base) is not None:
        return True
    if not generating or input_device(base).type == "cpu" or inputs.get("disable_compile"):
        return False
    settings = inputs.get("generation_config") or getattr(base, "generation_config", None)
    named = (inputs.get("cache_implementation"), getattr(settings, "cache_implementation", None))
    return any(named) or getattr(inputs.get("past_key_values"), "is_compileable", False)


class CompiledCall:
    """What calling a base does: its compiled self, unless a modality is active."""

    def __init__(self, base: nn.Module, options: dict[str, Any]) -> None:
        self.plain = uncompiled_call(base)
        self.compiled: Callable[..., Any] = torch.compile(self.plain, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the base returns."""
        return (self.plain if modality_active() else self.compiled)(*args, **kwargs)


_ISOLATED = (  # layers share their code: without this they would share 8 graphs
    {"isolate_recompiles": True}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters
    else {}
)


def _allow_graphs(count: int) -> None:
    """Let torch keep a graph for each layer, which it tells apart by their positions."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, count)
    if not _ISOLATED:
        config.recompile_limit = max(config.recompile_limit, count)
