"""The interface of a change of the base (Stage B), and whose calls run the changed base.

Whether a call runs the base as it was or as it was changed is context, never state of the base. A
hook on a changed module looks up a ``ContextVar``: outside a call of the model that owns the change
it returns None, so that the base, called by itself or in another thread, is the original. How a
base is changed is known to :mod:`safe_framework.experimental.base_finetuning` alone, which is
imported where an adapter says that it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from safe_framework.errors import AdapterError, InjectionError, SafeError
from safe_framework.utils.formatting import percent
from safe_framework.utils.hashing import tensors_fingerprint


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
_SUSPENDED: ContextVar[tuple[int, ...]] = ContextVar("safe_framework_original_base", default=())


def changed_call() -> ChangedCall | None:
    """The call that runs in this context, if it runs a changed base."""
    return _CALL.get()


@contextmanager
def use_changed_base(call: ChangedCall | None) -> Iterator[None]:
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
def use_original_base(change: object) -> Iterator[None]:
    """Within the block, and in this thread or task alone, ``change`` does not act."""
    _SUSPENDED.set((*_SUSPENDED.get(), id(change)))
    try:
        yield
    finally:  # generators may leave their blocks in any order, and in another context
        left = list(_SUSPENDED.get())
        if id(change) in left:
            left.remove(id(change))
        _SUSPENDED.set(tuple(left))


def is_suspended(change: object) -> bool:
    """Whether ``change`` does not act in this context."""
    return id(change) in _SUSPENDED.get()


class ChangeHook:
    """A forward hook that does nothing unless its owner's changed call is running.

    Args:
        owner: key of the SafeModel that installed it; a string, so that copies and pickles of
            a base hold no reference to the model.
        path: of the hooked module in the base.
    """

    def __init__(self, owner: str, path: str) -> None:
        self.owner, self.path = owner, path

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The changed output, or None to leave it alone."""
        if torch.compiler.is_dynamo_compiling():
            return None  # a compiled graph is always the base's own
        call = _CALL.get()
        if call is None or call.owner != self.owner:
            return None
        call.fired.add(self.path)
        return call.apply(self.path, args[0], output)


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

    def adapter_facts(self, base: nn.Module) -> dict[str, Any]:
        """What an adapter's config says of the change: how to make it again, and its numbers."""
        tensors = self.tensors(base)
        return {
            **self.facts(),
            "described": self.describe(),
            "laws_given_up": list(WAIVED),
            "off_is_the_original_base": self.reversible,
            "parameters": sum(p.numel() for p in tensors.values()),
            "weights": tensors_fingerprint(tensors),
            "drift": dict(self.drift),
        }


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


def named_change_parameters(change: BaseChange | None, base: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a change under ``CHANGE``; none where there is no change."""
    if change is None:
        return {}
    return {f"{CHANGE}.{name}": tensor for name, tensor in change.tensors(base).items()}


@torch.no_grad()
def check_reached(change: BaseChange, run: Callable[[], object]) -> None:
    """See that one tiny call of the base runs through every module that is changed by a hook.

    Args:
        change: of the base.
        run: calls the base.

    Raises:
        SafeError: it passes one by, as experts that are not chosen are.
    """
    call = change.call()
    if call is None:
        return
    with use_changed_base(call):
        run()
    if missed := [path for path in change.facts()["modules"] if path not in call.fired]:
        raise SafeError(
            f"`{missed[0]}` of the base was not called in a tiny call, so its change might not "
            "be heard",
            hint="choose other `targets` or `layers` in [stage_b]",
        )


_READERS = {
    "lora": "safe_framework.experimental.base_finetuning.lora",
    "layers": "safe_framework.experimental.base_finetuning.layers",
}
"""By method, the module whose ``read`` makes the change that an adapter's folder holds."""


def read_change(
    base: nn.Module, config: Mapping[str, Any], folder: Path, *, owner: str, layers_path: str
) -> BaseChange:
    """Change a base as an adapter says.

    Args:
        base: as it was before.
        config: what ``adapter_facts`` gave.
        folder: the adapter's, with the change's tensors.
        owner: key of the model whose calls run the changed base.
        layers_path: of the base's list of layers.

    Raises:
        AdapterError: the folder's tensors are not those that its config tells of.
    """
    try:
        weights, drift = config["weights"], dict(config["drift"])
        reader = import_module(_READERS[config["method"]])
        change: BaseChange = reader.read(base, config, folder, owner=owner, layers_path=layers_path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise AdapterError(
            f"the changed base of `{folder}` cannot be read: {error}", hint="copy the adapter again"
        ) from error
    change.drift = drift
    if tensors_fingerprint(change.tensors(base)) != weights:
        change.remove(base)
        raise AdapterError(
            f"the changed base of `{folder}` holds other weights than it was saved with",
            hint="copy or save the adapter again",
        )
    return change


def laws_given_up(laws: Sequence[str]) -> str:
    """Which laws do not hold.

    >>> laws_given_up(("L1", "L2"))
    'L1 and L2 do not hold'
    """
    return f"{' and '.join(laws)} do not hold"


def what_off_gives(original: bool) -> str:
    """What switching everything off gives."""
    if original:
        return "off() is the original base, bit for bit."
    return "off() is the changed base: its layers were trained in place."


def change_for_card(facts: Mapping[str, Any]) -> str:
    """What the model card of an adapter says, from the adapter's config."""
    drift = facts["drift"]
    measured = (
        f"Without a sample, {percent(drift['agreement'])} of next tokens on {drift['texts']} "
        f"{drift['source']} were the original's (KL {drift['kl']:.2g} nats, largest logit "
        f"difference {drift['largest']:.2g})."
        if drift
        else "How far it went from the original was not measured: `safe verify` does."
    )
    return (
        f"**The base was changed** ({facts['described']}, {facts['parameters']:,} parameters). "
        f"{laws_given_up(facts['laws_given_up'])}: with the sense absent or its gate at 0, "
        f"outputs are NOT the base model's. {measured} "
        f"{what_off_gives(facts['off_is_the_original_base'])}"
    )
