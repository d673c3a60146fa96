"""The interface of a change of the base, and how to compute with the base as it was."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from safe_framework.core.base_change_context import ChangedCall
from safe_framework.errors import SafeError

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel

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
