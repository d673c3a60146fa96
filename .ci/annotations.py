"""Annotations as text that moving a module leaves as it is: no paths, aliases written out."""

from __future__ import annotations

import ast
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import PurePath
from typing import Annotated, Any, ForwardRef, Literal, Union, get_args, get_origin, get_type_hints


def text_of(kind: Any) -> str:
    """A type as it would be written with every name imported.

    >>> text_of(Mapping[str, int | None])
    'Mapping[str, int | None]'
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is None or kind is type(None):
        return "None"
    if kind is ...:
        return "..."
    if isinstance(kind, (str, ForwardRef)):
        return getattr(kind, "__forward_arg__", kind)
    if isinstance(kind, list):  # the parameters of a Callable
        return f"[{', '.join(map(text_of, kind))}]"
    if origin is None:
        return getattr(kind, "__name__", None) or str(kind).removeprefix("typing.")
    if origin in (Union, types.UnionType):
        return " | ".join(map(text_of, arguments))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin is Annotated:
        return f"Annotated[{text_of(arguments[0])}, {', '.join(map(repr, kind.__metadata__))}]"
    return f"{origin.__name__}[{', '.join(map(text_of, arguments))}]"


def resolved(annotation: Any, module: str) -> Any:
    """What an annotation in ``module`` stands for; its own text where that cannot be found."""
    holder = types.SimpleNamespace(__annotations__={"one": annotation})
    try:
        return get_type_hints(holder, namespace(module), include_extras=True)["one"]
    except NameError:  # of a type parameter, or of a class inside a function
        return annotation


@cache
def namespace(module: str) -> dict[str, Any]:
    """The names of a module, those too that it imports for type checkers alone."""
    found = dict(vars(import_module(module)))
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for line in node.body:
                exec(ast.unparse(line), found)
    return found


def signature_text(thing: Callable[..., Any], module: str, *, bound: bool = False) -> str:
    """A signature with every annotation as ``text_of`` gives it, and no address of a default.

    Args:
        thing: a function or a class.
        module: in whose names its annotations are written.
        bound: leave the first parameter out, since a method is called without it.
    """
    signature = inspect.signature(thing)
    parameters = [
        one.replace(
            annotation=_Text(text_of(resolved(one.annotation, module)))
            if one.annotation is not one.empty
            else one.empty,
            default=one.default if one.default is one.empty else _Text(value_text(one.default)),
        )
        for one in list(signature.parameters.values())[int(bound) :]
    ]
    given = signature.return_annotation
    returns = given if given is signature.empty else _Text(text_of(resolved(given, module)))
    return str(signature.replace(parameters=parameters, return_annotation=returns))


def value_text(value: Any) -> str:
    """A default or a constant, functions and classes by what they are rather than by name."""
    if isinstance(value, PurePath):
        return f"Path({str(value)!r})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {value_text(one)}' for key, one in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(value_text, value))})"
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    return f"<{type(value).__name__}>"


class _Text:
    """Shown by ``inspect.Signature`` as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text
