"""Which hooks a base carries, and how to take some of them off for a while."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
from torch import nn
from torch.nn.modules import module as every_module

from safe_framework.core.layer_hooks import LayerHook

_KINDS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}
EVERYWHERE = "(every module)"
_OURS = "safe_framework"
_LIBRARIES = ("transformers", "accelerate")
"""Whose hooks are a part of the base: transformers installs some when they are first needed."""

HookName = tuple[str, str, str]
"""Module, kind and class of a hook: what stays the same in a copy of the base."""


@attrs.frozen(eq=False)
class PlacedHook:
    """One hook, and the table of torch that holds it.

    Attributes:
        module: dotted path of the module, or ``EVERYWHERE``.
        kind: when it runs, such as ``"forward pre-hook"``.
        hook: what is called.
        table: where torch looks it up.
        key: its key there.
    """

    module: str
    kind: str
    hook: Callable[..., Any]
    table: MutableMapping[int, Any]
    key: int

    @property
    def name(self) -> HookName:
        """What to compare it by."""
        return self.module, self.kind, class_name(self.hook)

    @property
    def ours(self) -> bool:
        """Whether the core made it."""
        return self._maker == _OURS

    @property
    def foreign(self) -> bool:
        """Whether neither the core nor a library that runs the base made it."""
        return self._maker not in (_OURS, *_LIBRARIES)

    @property
    def _maker(self) -> str:
        return class_name(self.hook).partition(".")[0]


def hooks_on(base: nn.Module) -> list[PlacedHook]:
    """Every hook that can act on a call of ``base``, in the order of its modules."""
    modules = [(path or type(base).__name__, module) for path, module in base.named_modules()]
    tables = [
        (path, kind, hooks)
        for path, module in modules
        for table, kind in _KINDS.items()
        if (hooks := getattr(module, table))
    ]
    tables += [
        (EVERYWHERE, kind, getattr(every_module, f"_global{table}"))
        for table, kind in _KINDS.items()
    ]
    return [
        PlacedHook(path, kind, hook, table, key)
        for path, kind, table in tables
        for key, hook in table.items()
    ]


def names_of(hooks: list[PlacedHook]) -> Counter[HookName]:
    """How often each name occurs among the foreign hooks."""
    return Counter(placed.name for placed in hooks if placed.foreign)


def stray(hooks: list[PlacedHook], known: Counter[HookName]) -> list[PlacedHook]:
    """The foreign hooks that are not in ``known``."""
    left = Counter(known)
    found = []
    for placed in hooks:
        if placed.foreign and left[placed.name]:
            left[placed.name] -= 1
        elif placed.foreign:
            found.append(placed)
    return found


@contextmanager
def taken_off(hooks: list[PlacedHook]) -> Iterator[None]:
    """Without ``hooks`` within the block; afterwards they are back, in the same order."""
    tables = {id(placed.table): placed.table for placed in hooks}
    kept = {key: dict(table) for key, table in tables.items()}
    for placed in hooks:
        del placed.table[placed.key]
    try:
        yield
    finally:
        for key, table in tables.items():
            added = {k: hook for k, hook in table.items() if k not in kept[key]}
            table.clear()
            table.update(kept[key] | added)


def of_modality(hooks: list[PlacedHook], name: str) -> list[PlacedHook]:
    """Those that let the modality called ``name`` in."""
    return [p for p in hooks if isinstance(p.hook, LayerHook) and p.hook.modality == name]


def class_name(hook: Callable[..., Any]) -> str:
    """What to call a function or the class of an object."""
    if isinstance(hook, partial):
        return class_name(hook.func)
    named = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"{named.__module__}.{named.__qualname__}"
