"""What one call gives and which operations it takes, and where two calls first differ.

Results are named leaves that are compared bit by bit; operations are those that torch dispatches,
in their order.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from safe_framework.core.layer_hooks import registered
from safe_framework.utils.seeds import seed_generators
from safe_framework.utils.tensors import as_bytes, bitwise_equal

Mode = Literal["no_grad", "inference", "grad"]

_MODES: Mapping[Mode, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "grad": nullcontext,
}
_SEED = 11


@attrs.frozen(eq=False)
class Outcome:
    """What came of one call.

    Attributes:
        leaves: tensors, numbers and texts by their path in what was returned.
        error: type and message of the exception, or empty.
    """

    leaves: Mapping[str, Any]
    error: str = ""

    def select_rows(self, chosen: list[int], batch: int) -> Outcome:
        """Of every tensor with one row for each of the ``batch`` rows, those ``chosen``."""
        kept = {
            path: leaf[chosen]
            for path, leaf in self.leaves.items()
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == batch
        }
        return Outcome(kept, self.error)

    def starting_with(self, name: str) -> Outcome:
        """The leaves whose path begins with ``name``."""
        return Outcome({p: v for p, v in self.leaves.items() if p.startswith(name)}, self.error)


def capture_outcome(
    call: Callable[..., Any], inputs: Mapping[str, Any], mode: Mode = "no_grad"
) -> Outcome:
    """Call with copies of the tensors in ``inputs``, from the same random state every time."""
    own = {key: v.clone() if isinstance(v, Tensor) else v for key, v in inputs.items()}
    seed_generators(_SEED)
    with warnings.catch_warnings(), _MODES[mode]():
        warnings.simplefilter("ignore")
        try:
            returned = call(**own)
        except Exception as error:  # what a base raises is a part of what it does
            return Outcome({}, f"{type(error).__name__}: {error}")
    return Outcome(dict(_leaves(returned, "", set())))


def _leaves(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values in nested containers, outputs and caches."""
    if value is None or isinstance(value, (Tensor, bool, int, float, str)):
        if value is not None:
            yield path or "result", value.detach() if isinstance(value, Tensor) else value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    for name, part in _parts(value):
        yield from _leaves(part, f"{path}.{name}" if path else name, seen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, (tuple, list)):
        yield from ((str(number), part) for number, part in enumerate(value))
    elif _is_cache(value):
        yield from vars(value).items()


def _is_cache(value: Any) -> bool:
    """Whether it is a container of transformers, such as a cache of keys and values."""
    foreign = not type(value).__module__.startswith("transformers.")
    return not (foreign or isinstance(value, nn.Module) or hasattr(value, "to_dict"))


def difference(seen: Outcome, expected: Outcome, other: str = "the base") -> str:
    """The first bit in which ``seen`` is not ``expected``; empty if there is none.

    Args:
        seen: of the call that is judged.
        expected: of the call that it must equal.
        other: who gave ``expected``, for the sentence.
    """
    if seen.error != expected.error:
        return f"it {_result(seen)} where {other} {_result(expected)}"
    if lost := expected.leaves.keys() - seen.leaves.keys():
        return f"`{min(lost)}` is missing"
    if added := seen.leaves.keys() - expected.leaves.keys():
        return f"`{min(added)}` is there, which {other} does not give"
    for path, leaf in expected.leaves.items():
        if found := _leaf_difference(path, seen.leaves[path], leaf, other):
            return found
    return ""


def _result(outcome: Outcome) -> str:
    return f"raises {outcome.error}" if outcome.error else "answers"


def _leaf_difference(path: str, seen: Any, expected: Any, other: str) -> str:
    if not (isinstance(seen, Tensor) and isinstance(expected, Tensor)):
        same = type(seen) is type(expected) and repr(seen) == repr(expected)
        return "" if same else f"`{path}` is {seen!r}, {other} has {expected!r}"
    if seen.dtype != expected.dtype or seen.shape != expected.shape:
        return f"`{path}` is {tensor_type(seen)}, {other} has {tensor_type(expected)}"
    if bitwise_equal(seen, expected):
        return ""
    return _first_element(path, seen, expected, other)


def _first_element(path: str, seen: Tensor, expected: Tensor, other: str) -> str:
    bits = as_bytes(seen) != as_bytes(expected).to(seen.device)
    differing = bits.reshape(-1, seen.element_size()).any(1).nonzero().flatten()
    where = torch.unravel_index(differing[0], seen.shape) if seen.ndim else ()
    index = tuple(int(axis) for axis in where)
    label = f"{path}[{', '.join(map(str, index))}]" if index else path
    return (
        f"`{label}` is {seen[index].item()}, {other} has {expected[index].item()} "
        f"({len(differing):,} of {seen.numel():,} numbers differ)"
    )


def tensor_type(tensor: Tensor) -> str:
    """Type and shape, such as ``float32[2, 8]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


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
        given = [_format_argument(value) for value in args]
        given += [f"{key}={_format_argument(value)}" for key, value in (kwargs or {}).items()]
        self.operations.append(Operation(str(func), ", ".join(given), self.module))
        return func(*args, **(kwargs or {}))


def trace_call(
    call: Callable[..., Any], inputs: Mapping[str, Any], base: nn.Module
) -> tuple[Outcome, list[Operation]]:
    """What the call gives, and the operations that it took."""
    recorder = _Recorder()

    def recorded(**own: Any) -> Any:
        """The call, with its operations written down."""
        with recorder, _module_entries(base, recorder):
            return call(**own)

    return capture_outcome(recorded, inputs), recorder.operations


def _module_entries(base: nn.Module, recorder: _Recorder) -> AbstractContextManager[None]:
    names = {id(module): path or type(base).__name__ for path, module in base.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        """Note which module the next operations belong to."""
        recorder.module = names.get(id(module), recorder.module)

    return registered(register_module_forward_pre_hook(enter))


def without_extra_preamble(
    seen: Sequence[Operation], expected: Sequence[Operation]
) -> list[Operation]:
    """``seen`` without the operations that a model ran more than the base before it called it."""
    return list(seen)[max(_preamble_length(seen) - _preamble_length(expected), 0) :]


def _preamble_length(operations: Sequence[Operation]) -> int:
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
    return f"{where}: {_mismatch(seen[start:], expected[start:])}"


def _mismatch(seen: Sequence[Operation], expected: Sequence[Operation]) -> str:
    if not seen:
        return f"{expected[0]} and what follows is missing"
    if not expected:
        return f"{_list_names(seen)} too many"
    for here, there, what in ((seen, expected, "too many"), (expected, seen, "missing")):
        for count in range(1, len(here)):
            if here[count : count + 3] == there[:3]:
                return f"{_list_names(here[:count])} {what}"
    return f"{seen[0]} instead of {expected[0]}"


def _list_names(operations: Sequence[Operation]) -> str:
    names = [operation.name for operation in operations[:4]]
    more = f" and {len(operations) - 4} more" if len(operations) > 4 else ""
    return ", ".join(names) + more + (" is" if len(operations) == 1 else " are")


def trace_digest(operations: Iterable[Operation]) -> str:
    """SHA-256 of a trace."""
    return hashlib.sha256("\n".join(map(str, operations)).encode()).hexdigest()


def _format_argument(value: Any) -> str:
    if isinstance(value, Tensor):
        return tensor_type(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_format_argument, value))}]"
    plain = (bool, int, float, str, torch.dtype, torch.device, torch.layout, type(None))
    return str(value) if isinstance(value, plain) else type(value).__name__
