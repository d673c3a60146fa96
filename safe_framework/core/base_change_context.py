"""Whether a call runs the base as it was or as it was changed: context, never state of the base.

A hook on a changed module looks up a ``ContextVar``. Outside a call of the model that owns the
change it returns None, so that the base, called by itself or in another thread, is the original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.errors import InjectionError


@attrs.define(eq=False)
class ChangedCall:
    """One call that runs a changed base.

    Attributes:
        owner: key of the model whose call it is.
        apply: gives a module's changed output from its path, its input and its own output.
        fired: paths of the modules that were changed so far.
    """

    owner: str
    apply: Callable[[str, Tensor, Tensor], Tensor]
    fired: set[str] = attrs.field(factory=set, init=False)


_CALL: ContextVar[ChangedCall | None] = ContextVar("safe_framework_changed_call", default=None)
_SUSPENDED: ContextVar[frozenset[int]] = ContextVar(
    "safe_framework_original_base", default=frozenset()
)


def changed_call() -> ChangedCall | None:
    """The call that runs in this context, if it runs a changed base."""
    return _CALL.get()


@contextmanager
def acting(call: ChangedCall | None) -> Iterator[None]:
    """Let ``call`` change the modules that are called in this context, and nothing else.

    Raises:
        InjectionError: the block ended, and no changed module was ever called.
    """
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)
    if call is not None and not call.fired:
        raise InjectionError(
            "the changed base was bypassed: no module with a low-rank pair was called",
            hint="if the base is compiled, let safe_framework.compile(model) do it",
        )


@contextmanager
def suspended(change: object) -> Iterator[None]:
    """Within the block, and in this thread or task alone, ``change`` does not act."""
    token = _SUSPENDED.set(_SUSPENDED.get() | {id(change)})
    try:
        yield
    finally:
        _SUSPENDED.reset(token)


def is_suspended(change: object) -> bool:
    """Whether ``change`` does not act in this context."""
    return id(change) in _SUSPENDED.get()


class ChangeHook:
    """A forward hook that does nothing unless its owner's changed call is running.

    Args:
        owner: key of the SafeModel that installed it; a string, so that copies and pickles of
            a base hold no reference to the model.
        place: path of the hooked module in the base.
    """

    def __init__(self, owner: str, place: str) -> None:
        self.owner, self.place = owner, place

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The changed output, or None to leave it alone."""
        if torch.compiler.is_dynamo_compiling():
            return None  # a compiled graph is always the base's own
        call = _CALL.get()
        if call is None or call.owner != self.owner:
            return None
        call.fired.add(self.place)
        return call.apply(self.place, args[0], output)
