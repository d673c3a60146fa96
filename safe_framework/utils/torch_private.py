"""What has no public way in torch: each private member that the framework uses, in one place.

:mod:`safe_framework.core.hook_inventory` alone names tables of hooks besides, to list them all.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from torch import Tensor, nn


def write_count(tensor: Tensor) -> int:
    """How often a tensor was written in place; every in-place operation of torch counts."""
    return tensor._version


def forward_pre_hooks(module: nn.Module) -> MutableMapping[int, Any]:
    """The hooks that run before a module's forward, by their keys."""
    return module._forward_pre_hooks


def forward_hooks(module: nn.Module) -> MutableMapping[int, Any]:
    """The hooks that run after a module's forward, by their keys."""
    return module._forward_hooks


def uncompiled_call(module: nn.Module) -> Callable[..., Any]:
    """What calling a module does, with its hooks, where it is not compiled."""
    call: Callable[..., Any] = module._call_impl
    return call


def compiled_call(module: nn.Module) -> Callable[..., Any] | None:
    """What calling a module does instead, where it is compiled in place; None where it is not."""
    call: Callable[..., Any] | None = module._compiled_call_impl
    return call


def set_compiled_call(module: nn.Module, call: Callable[..., Any] | None) -> None:
    """Let calling a module do ``call``; with None, what it did before it was compiled."""
    if call is not None:
        module._compiled_call_impl = call
    else:
        del module._compiled_call_impl  # None again, which is the class's attribute
