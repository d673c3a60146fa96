"""Where two outcomes first differ, in words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from safe_framework.utils.tensors import integers, same_bits
from safe_framework.verification.outcome import Outcome


def difference(seen: Outcome, expected: Outcome, other: str = "the base") -> str:
    """The first bit in which ``seen`` is not ``expected``; empty if there is none.

    Args:
        seen: of the call that is judged.
        expected: of the call that it must equal.
        other: who gave ``expected``, for the sentence.
    """
    if seen.error != expected.error:
        return f"it {_end(seen)} where {other} {_end(expected)}"
    if lost := expected.leaves.keys() - seen.leaves.keys():
        return f"`{min(lost)}` is missing"
    if added := seen.leaves.keys() - expected.leaves.keys():
        return f"`{min(added)}` is there, which {other} does not give"
    for path, leaf in expected.leaves.items():
        if found := _leaf_difference(path, seen.leaves[path], leaf, other):
            return found
    return ""


def _end(outcome: Outcome) -> str:
    return f"raises {outcome.error}" if outcome.error else "answers"


def _leaf_difference(path: str, seen: Any, expected: Any, other: str) -> str:
    if not (isinstance(seen, Tensor) and isinstance(expected, Tensor)):
        same = type(seen) is type(expected) and repr(seen) == repr(expected)
        return "" if same else f"`{path}` is {seen!r}, {other} has {expected!r}"
    if seen.dtype != expected.dtype or seen.shape != expected.shape:
        return f"`{path}` is {kind_of(seen)}, {other} has {kind_of(expected)}"
    if same_bits(seen, expected):
        return ""
    return _first_element(path, seen, expected, other)


def _first_element(path: str, seen: Tensor, expected: Tensor, other: str) -> str:
    bits = integers(seen) != integers(expected).to(seen.device)
    places = bits.reshape(-1, seen.element_size()).any(1).nonzero().flatten()
    where = torch.unravel_index(places[0], seen.shape) if seen.ndim else ()
    index = tuple(int(axis) for axis in where)
    label = f"{path}[{', '.join(map(str, index))}]" if index else path
    return (
        f"`{label}` is {seen[index].item()}, {other} has {expected[index].item()} "
        f"({len(places):,} of {seen.numel():,} numbers differ)"
    )


def kind_of(tensor: Tensor) -> str:
    """Type and shape, such as ``float32[2, 8]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
