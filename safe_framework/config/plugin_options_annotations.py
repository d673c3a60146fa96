"""Types and defaults out of parsed source, for as far as they are simple."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional, Union

from safe_framework.config.plugin_options_source import UnreadableError
from safe_framework.config.schema import EncoderSpec

_TYPES: dict[str, Any] = {
    "Any": Any,
    "Encoder": EncoderSpec,
    "Literal": Literal,
    "Mapping": Mapping,
    "Optional": Optional,
    "Sequence": Sequence,
    "Union": Union,
    **{kind.__name__: kind for kind in (bool, dict, float, int, list, str, tuple)},
}


def read_type(node: ast.expr, constants: Mapping[str, ast.expr]) -> Any:
    """The type that an annotation names.

    Args:
        node: the annotation.
        constants: assignments of the module, in which aliases are looked up.

    Raises:
        UnreadableError: it is not made of builtin types, ``typing`` and ``collections.abc`` alone.
    """
    if isinstance(node, ast.Constant):
        return _constant(node.value, constants)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return Union[read_type(node.left, constants), read_type(node.right, constants)]  # noqa: UP007  # of values
    if isinstance(node, ast.Subscript):
        return _subscript(node, constants)
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    if name in constants:
        return read_type(constants[name], constants)
    if name in _TYPES:
        return _TYPES[name]
    raise UnreadableError(f"annotation `{ast.unparse(node)}`")


def read_value(node: ast.expr, constants: Mapping[str, ast.expr]) -> Any:
    """The value of a default, which may be a literal or the name of one.

    Raises:
        UnreadableError: it is anything else.
    """
    if isinstance(node, ast.Name) and node.id in constants:
        return read_value(constants[node.id], constants)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise UnreadableError(f"default `{ast.unparse(node)}`") from error


def _constant(value: object, constants: Mapping[str, ast.expr]) -> Any:
    if value is None or value is ...:
        return value
    if isinstance(value, str):
        return read_type(ast.parse(value, mode="eval").body, constants)
    raise UnreadableError(f"annotation `{value!r}`")


def _subscript(node: ast.Subscript, constants: Mapping[str, ast.expr]) -> Any:
    generic = read_type(node.value, constants)
    inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if generic is Literal:
        return Literal[tuple(read_value(item, constants) for item in inside)]
    arguments = tuple(read_type(item, constants) for item in inside)
    try:
        return generic[arguments if len(arguments) > 1 else arguments[0]]
    except TypeError as error:
        raise UnreadableError(f"annotation `{ast.unparse(node)}`") from error
