"""Shapes that annotations state, checked while a test runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import attrs
import torch
from hypothesis import HealthCheck, Phase, settings
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


# What the contracts share: how often they try, when two results are the same, what learns.


_STEPS = 4


def tried(most: int = 30) -> settings:
    """Settings of a law that is tried on up to ``most`` examples, or as the profile says.

    A contract runs as a method of each of its subclasses, which Hypothesis takes for a mistake;
    and a first example may load a model.
    """
    return settings(
        max_examples=min(most, settings().max_examples),
        deadline=None,
        phases=[phase for phase in settings().phases if phase is not Phase.explain],  # minutes
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )


def assert_near(seen: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of other shapes of the same products."""
    largest = expected.detach().abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5 * max(largest, 1.0))


def moved(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module after something has been learned: each trainable parameter changed a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * noise.to(parameter.dtype))
    return module


def never_learning(module: nn.Module, output: Callable[[], Tensor]) -> list[str]:
    """Names of the trainable parameters that no gradient reaches in a few steps.

    Args:
        module: in training, from a fresh start.
        output: of the module; a random direction of it is trained.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert trainable, "no parameter is trainable"
    optimizer = torch.optim.Adam(trainable.values(), lr=0.01)
    generator, waiting = torch.Generator().manual_seed(0), set(trainable)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        given = output()
        loss = (given * torch.randn(given.shape, generator=generator)).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        for name, parameter in trainable.items():
            if parameter.grad is not None and parameter.grad.any():
                waiting.discard(name)
        optimizer.step()
    return sorted(waiting)


def finite_gradients(module: nn.Module) -> bool:
    """Whether every gradient that there is holds finite numbers."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
