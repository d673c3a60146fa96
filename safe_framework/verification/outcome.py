"""Everything that one call gives, as named leaves which can be compared bit by bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

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

    def rows(self, chosen: list[int], batch: int) -> Outcome:
        """Of every tensor with one row for each of the ``batch`` rows, those ``chosen``."""
        kept = {
            path: leaf[chosen]
            for path, leaf in self.leaves.items()
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == batch
        }
        return Outcome(kept, self.error)

    def part(self, name: str) -> Outcome:
        """The leaves whose path begins with ``name``."""
        return Outcome({p: v for p, v in self.leaves.items() if p.startswith(name)}, self.error)


def outcome(call: Callable[..., Any], inputs: Mapping[str, Any], mode: Mode = "no_grad") -> Outcome:
    """Call with copies of the tensors in ``inputs``, from the same random state every time."""
    own = {key: v.clone() if isinstance(v, Tensor) else v for key, v in inputs.items()}
    torch.manual_seed(_SEED)
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
