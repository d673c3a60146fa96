"""The interface of a change of the base, and how to compute with the base as it was."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from safe_framework.errors import InjectionError, SafeError

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel


# Whether a call runs the base as it was or as it was changed: context, never state of the base.
#
# A hook on a changed module looks up a ``ContextVar``. Outside a call of the model that owns the
# change it returns None, so that the base, called by itself or in another thread, is the original.


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


CHANGE = "base__change"
"""What the names of a change's tensors begin with; no modality can be called so."""
WAIVED = ("L1", "L2")
"""The laws that a model with a changed base gives up."""


class BaseChange(nn.Module, ABC):
    """What Stage B trains in a base, beside the modalities.

    Laws:
        original: within ``original(base)``, the base computes bit for bit what it did before.
        reversible: where it is True, that needs no write to the base, so that it holds for the
            thread or task that asks and for no other.
        removed: after ``remove(base)``, so does the base at any time.

    Attributes:
        method: its name in a recipe.
        reversible: whether the base's own tensors stay as they were.
        drift: how far it took the base, as the adapter tells it; empty until it was measured.
    """

    method: ClassVar[str]
    reversible: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.drift: Mapping[str, Any] = {}

    @abstractmethod
    def tensors(self, base: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that it trains, by name."""

    @abstractmethod
    def call(self) -> ChangedCall | None:
        """What lets one call run the changed base; None where nothing is needed."""

    @abstractmethod
    def original(self, base: nn.Module) -> AbstractContextManager[None]:
        """A block within which the base is what it was."""

    @abstractmethod
    def taking_gradients(self, base: nn.Module) -> AbstractContextManager[None]:
        """A block within which its parameters take gradients."""

    @abstractmethod
    def remove(self, base: nn.Module) -> None:
        """Give the base back as it was."""

    @abstractmethod
    def write(self, base: nn.Module, folder: Path) -> None:
        """Put its tensors into an adapter's folder."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """How it is made, as an adapter's config tells it."""

    @abstractmethod
    def describe(self) -> str:
        """What was changed, for people, such as ``"layers 2 and 3 trained in place"``."""


@contextmanager
def original(model: SafeModel) -> Iterator[None]:
    """Within the block, ``model`` and its base compute with the base as it was.

    Of a change in place the block is no other thread's to call the model in.
    """
    change = model.base_change
    if change is None:
        yield
        return
    with change.original(model.base):
        yield


def refuse_changed(change: BaseChange | None) -> None:
    """Refuse what can only be done while the base is as it was.

    Raises:
        SafeError: it was changed.
    """
    if change is not None:
        raise SafeError(
            "no modality can be added to a base that was changed in stage B",
            hint="add every modality before stage B",
        )


def named(change: BaseChange | None, base: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a change under ``CHANGE``; none where there is no change."""
    if change is None:
        return {}
    return {f"{CHANGE}.{name}": tensor for name, tensor in change.tensors(base).items()}


def drop_change(model: SafeModel) -> None:
    """Give a model's base back as it was, if it was changed."""
    if model.base_change is not None:
        model.base_change.remove(model.base)
        model.base_change = None
        model.seal.changed = frozenset()
