"""The operations that a call sends to torch, in their order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from safe_framework.verification.outcome import Outcome, outcome
from safe_framework.verification.outcome_compare import kind_of


@attrs.frozen
class Operation:
    """One operation.

    Attributes:
        name: such as ``"aten.mul.Tensor"``.
        arguments: types and shapes of tensors, and plain values as they are.
        module: the base's module that was entered last before it; empty before any was.
    """

    name: str
    arguments: str
    module: str = attrs.field(default="", eq=False)

    def __str__(self) -> str:
        return f"{self.name}({self.arguments})"


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there
        self.operations: list[Operation] = []
        self.module = ""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = [_shown(value) for value in args]
        given += [f"{key}={_shown(value)}" for key, value in (kwargs or {}).items()]
        self.operations.append(Operation(str(func), ", ".join(given), self.module))
        return func(*args, **(kwargs or {}))


def traced(
    call: Callable[..., Any], inputs: Mapping[str, Any], base: nn.Module
) -> tuple[Outcome, list[Operation]]:
    """What the call gives, and the operations that it took."""
    recorder = _Recorder()

    def recorded(**own: Any) -> Any:
        """The call, with its operations written down."""
        with recorder, _entering(base, recorder):
            return call(**own)

    return outcome(recorded, inputs), recorder.operations


@contextmanager
def _entering(base: nn.Module, recorder: _Recorder) -> Iterator[None]:
    names = {id(module): path or type(base).__name__ for path, module in base.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        """Note which module the next operations belong to."""
        recorder.module = names.get(id(module), recorder.module)

    handle = register_module_forward_pre_hook(enter)
    try:
        yield
    finally:
        handle.remove()


def from_the_base_on(seen: Sequence[Operation], expected: Sequence[Operation]) -> list[Operation]:
    """What was seen without what a model did more than the base before it called the base."""
    return list(seen)[max(_before(seen) - _before(expected), 0) :]


def _before(operations: Sequence[Operation]) -> int:
    return next((n for n, operation in enumerate(operations) if operation.module), 0)


def trace_difference(seen: Sequence[Operation], expected: Sequence[Operation]) -> str:
    """The first operation in which two traces differ; empty if there is none."""
    if list(seen) == list(expected):
        return ""
    pairs = zip(seen, expected, strict=False)
    start = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(seen), len(expected)))
    where = f"at operation {start + 1}"
    if start < len(seen) and seen[start].module:
        where += f", in `{seen[start].module}`"
    return f"{where}: {_what(seen[start:], expected[start:])}"


def _what(seen: Sequence[Operation], expected: Sequence[Operation]) -> str:
    if not seen:
        return f"{expected[0]} and what follows is missing"
    if not expected:
        return f"{_listed(seen)} too many"
    for here, there, words in ((seen, expected, "too many"), (expected, seen, "missing")):
        for count in range(1, len(here)):
            if here[count : count + 3] == there[:3]:
                return f"{_listed(here[:count])} {words}"
    return f"{seen[0]} instead of {expected[0]}"


def _listed(operations: Sequence[Operation]) -> str:
    names = [operation.name for operation in operations[:4]]
    more = f" and {len(operations) - 4} more" if len(operations) > 4 else ""
    return ", ".join(names) + more + (" is" if len(operations) == 1 else " are")


def digest(operations: Iterable[Operation]) -> str:
    """SHA-256 of a trace."""
    return hashlib.sha256("\n".join(map(str, operations)).encode()).hexdigest()


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return kind_of(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    plain = (bool, int, float, str, torch.dtype, torch.device, torch.layout, type(None))
    return str(value) if isinstance(value, plain) else type(value).__name__
