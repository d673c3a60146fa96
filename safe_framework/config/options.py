"""What a table may hold, as one list of options, whether it is a table of ours or a plugin's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

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
