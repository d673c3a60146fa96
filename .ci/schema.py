"""Print as JSON what a recipe may hold: tables, keys, and their types, defaults and ranges."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import attrs
from annotations import text_of, value_text

from safe_framework.config.schema import Recipe

PROBES: dict[type, tuple[Any, ...]] = {
    int: (-1, 0, 1, 2, 10**9),
    float: (-1.0, 0.0, 0.5, 1.0, 2.0, 1e9, math.inf, math.nan),
    str: ("", "text"),
}
"""Values of each type that ranges differ on."""


def main() -> None:
    """Print every table."""
    tables = {table.__name__: dict(keys(table)) for table in tables_below(Recipe, [])}
    print(json.dumps(tables, indent=1, sort_keys=True))


def tables_below(table: type, found: list[type]) -> list[type]:
    """A table and all those that its keys hold."""
    if table not in found:
        found.append(table)
        for kind in get_type_hints(table).values():
            for below in classes_in(kind):
                tables_below(below, found)
    return found


def classes_in(kind: Any) -> Iterator[type]:
    """The classes of the schema that a type is made of."""
    if isinstance(kind, type) and attrs.has(kind):
        yield kind
    for argument in get_args(kind):
        yield from classes_in(argument)


def keys(table: type) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key of a table, in the order of the class."""
    kinds = get_type_hints(table)
    for field in attrs.fields(table):
        yield (
            field.name,
            {
                "type": text_of(kinds[field.name]),
                "default": default_of(field),
                "range": range_of(field, kinds[field.name]),
                "written": field.metadata.get("written", True),
            },
        )


def default_of(field: attrs.Attribute[Any]) -> str:
    """What the key is when it is left out."""
    if field.default is attrs.NOTHING:
        return "required"
    if isinstance(field.default, attrs.Factory):
        made = field.default.factory
        return f"{made.__name__}()"
    return value_text(field.default)


def range_of(field: attrs.Attribute[Any], kind: Any) -> dict[str, list[str]]:
    """What the validator says, and to which values."""
    refused: dict[str, list[str]] = {}
    for value in probes(kind):
        try:
            if field.validator is not None:
                field.validator(None, field, value)
        except ValueError as error:
            law = str(error).rpartition(", not ")[0] or str(error)
            refused.setdefault(law, []).append(repr(value))
    return refused


def probes(kind: Any) -> Iterator[Any]:
    """Values of a type, the empty one of a mapping or an array among them."""
    if kind is type(None):
        yield None
    yield from PROBES.get(kind, ())
    origin = getattr(kind, "__origin__", None)
    if origin is tuple:
        yield ()
    elif origin is not None and getattr(origin, "__name__", "") == "Mapping":
        yield {}
    elif not isinstance(kind, type):
        for member in get_args(kind):
            yield from probes(member)


if __name__ == "__main__":
    main()
