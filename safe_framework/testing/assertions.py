"""Shapes that annotations state, checked while a test runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import attrs
from torch import Tensor, nn


def check_shapes(
    function: Callable[..., Any],
    *arguments: Any,
    sizes: Mapping[str, int] | None = None,
    **keywords: Any,
) -> Any:
    """Call a function, and hold its arguments and its result to the shapes it is annotated with.

    ``Annotated[Tensor, "batch length hidden"]`` states three axes. A name stands for one size in
    the whole call; a number for itself. Inside ``Frames``, ``Tokens``, ``Memory`` and other attrs
    classes the fields are held to theirs. A method without shapes of its own, such as a
    plugin's ``forward``, is held to those of the interface that it implements.

    Args:
        function: a module, method or function.
        *arguments: to call it with.
        sizes: of axes that are known beforehand, by name.
        **keywords: to call it with.

    Returns:
        What the function returns.

    Raises:
        AssertionError: a shape is another; the message names the value and both shapes.

    >>> import torch
    >>> def mean(values: Annotated[Tensor, "batch dim"]) -> Annotated[Tensor, "batch"]:
    ...     return values.mean(0)
    >>> check_shapes(mean, torch.zeros(2, 3))
    Traceback (most recent call last):
    AssertionError: what `mean` returns must be (batch) with batch = 2, not (3,)
    """
    name = _name(function)
    hints = _hints(function)
    known = dict(sizes or {})
    bound = inspect.signature(_called(function)).bind(*arguments, **keywords)
    for parameter, value in bound.arguments.items():
        _check(hints.get(parameter), value, known, f"`{parameter}` of `{name}`")
    result = function(*arguments, **keywords)
    _check(hints.get("return"), result, known, f"what `{name}` returns")
    return result


def _called(function: Callable[..., Any]) -> Callable[..., Any]:
    """A module's own ``forward``, which its call passes everything on to."""
    return function.forward if isinstance(function, nn.Module) else function


def _name(function: Callable[..., Any]) -> str:
    if isinstance(function, nn.Module):
        return f"{type(function).__qualname__}.forward"
    return getattr(function, "__qualname__", repr(function))


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """What is annotated with a shape, by parameter: the nearest class that says one counts."""
    found: dict[str, Any] = {}
    for declared in _declarations(_called(function)):
        for name, hint in declared.items():
            if name not in found and _notes(hint):
                found[name] = hint
    return found


def _declarations(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    owner = getattr(function, "__self__", None)
    if owner is None:
        yield get_type_hints(function, include_extras=True)
        return
    for kind in type(owner).__mro__:
        method = vars(kind).get(getattr(function, "__name__", ""))
        try:
            yield get_type_hints(method, include_extras=True) if inspect.isfunction(method) else {}
        except NameError:  # imported for type checkers alone; the interface's own can be resolved
            continue


def _notes(hint: Any) -> bool:
    """Whether a hint says anything of shapes."""
    if attrs.has(hint):
        return True
    return get_origin(hint) is Annotated or any(map(_notes, get_args(hint)))


def _check(hint: Any, value: Any, sizes: dict[str, int], where: str) -> None:
    if value is None or hint is None:
        return
    if attrs.has(hint):
        if isinstance(value, hint):
            for field, inner in get_type_hints(hint, include_extras=True).items():
                _check(inner, getattr(value, field, None), sizes, f"`{field}` of {where}")
    elif get_origin(hint) is Annotated:
        for note in hint.__metadata__:
            if isinstance(note, str):
                _bind(note.split(), value, sizes, where)
    elif get_origin(hint) in (Union, UnionType):
        for member in get_args(hint):
            _check(member, value, sizes, where)


def _bind(axes: list[str], value: Any, sizes: dict[str, int], where: str) -> None:
    """Match one tensor with its axes, whose sizes accumulate in ``sizes``."""
    if not isinstance(value, Tensor):
        raise AssertionError(f"{where} must be a tensor, not {type(value).__name__}")
    seen, wanted = tuple(value.shape), f"({', '.join(axes)})"
    if len(seen) != len(axes):
        raise AssertionError(f"{where} must be {wanted}, not {seen}")
    for axis, size in zip(axes, seen, strict=True):
        expected = int(axis) if axis.isdecimal() else sizes.setdefault(axis, size)
        if size != expected:
            named = wanted if axis.isdecimal() else f"{wanted} with {axis} = {expected}"
            raise AssertionError(f"{where} must be {named}, not {seen}")
