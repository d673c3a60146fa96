"""What a table may hold, as one list of options, whether it is a table of ours or a plugin's.

Types and values are described in the terms of a recipe's author: a whole number, an array.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import attrs

REQUIRED: Any = attrs.NOTHING
"""The default of an option that must be given."""


class Option(NamedTuple):
    """One key of a table.

    Attributes:
        name: the key.
        kind: the type of its value.
        default: what it is when it is not given, or :data:`REQUIRED`.
        check: raises ValueError for a value out of range.
    """

    name: str
    kind: Any
    default: Any = REQUIRED
    check: Callable[[Any], None] | None = None


def schema_options(schema: type) -> list[Option]:
    """The keys that a class of the schema may be written with."""
    hints = get_type_hints(schema)
    fields = attrs.fields(schema)
    written = [field for field in fields if field.metadata.get("written", True)]
    return [Option(f.name, hints[f.name], f.default, _check(f)) for f in written]


def _check(field: attrs.Attribute[Any]) -> Callable[[Any], None] | None:
    validator = field.validator
    if validator is None:
        return None
    return lambda value: validator(None, field, value)


UNIONS = (Union, types.UnionType)
ARRAYS = (tuple, list, Sequence)
TABLES = (dict, Mapping)
SCALARS = (bool, int, float, str)

_SINGULAR = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Any: "anything",
}
_PLURAL = {bool: "booleans", int: "whole numbers", float: "numbers", str: "strings"}


def outer(kind: Any) -> Any:
    """What a type is made with: ``tuple`` for ``tuple[int, ...]``, the collections' own names."""
    return get_origin(kind) or kind


def items_of(kind: Any) -> Any:
    """The type of an array's items, where all have one."""
    arguments = [argument for argument in get_args(kind) if argument is not ...]
    return arguments[0] if arguments else Any


def members(kind: Any) -> list[Any]:
    """The types of a union that TOML can write, which leaves out None."""
    return [member for member in get_args(kind) if member is not type(None)]


def phrase(kind: Any) -> str:
    """A type as a recipe's author would name it.

    >>> phrase(tuple[int, ...] | Literal["all"])
    'an array of whole numbers or "all"'
    >>> phrase(Sequence[int | float])
    'an array of whole numbers or numbers'
    """
    origin = outer(kind)
    if origin in UNIONS:
        return " or ".join(phrase(member) for member in members(kind))
    if origin is Literal:
        return _either([quote(choice) for choice in get_args(kind)])
    if origin in ARRAYS:
        return f"an array of {_plural(items_of(kind))}"
    if origin in TABLES or attrs.has(kind):
        return "a table"
    return _SINGULAR.get(kind, "a value")


def describe(value: Any) -> str:
    """A value as a recipe's author wrote it.

    >>> describe("8"), describe(8.5), describe([1])
    ('the string "8"', 'the number 8.5', 'an array')
    """
    if isinstance(value, bool):
        return quote(value)
    if isinstance(value, str):
        return f"the string {quote(value)}"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, list):
        return "an array"
    return "a table" if isinstance(value, dict) else "a date or time"


def quote(value: object) -> str:
    """A scalar in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def example(kind: Any) -> str:
    """What the right-hand side of a missing key might look like.

    >>> example(str), example(int), example(tuple[int, ...])
    ('"..."', '...', '[...]')
    """
    origin = outer(kind)
    if origin in UNIONS:
        return example(members(kind)[0])
    if origin is Literal:
        return quote(get_args(kind)[0])
    if kind is str:
        return '"..."'
    return "[...]" if origin in ARRAYS else "..."


def _plural(kind: Any) -> str:
    if outer(kind) is Literal:
        return f"values among {_either([quote(choice) for choice in get_args(kind)])}"
    if outer(kind) in ARRAYS:
        return "arrays"
    if outer(kind) in UNIONS:
        return " or ".join(_plural(member) for member in members(kind))
    if attrs.has(kind):
        return "tables"
    return _PLURAL.get(kind, "values")


def _either(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
