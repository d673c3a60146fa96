"""Range checks of recipe fields; each message begins with the field's name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sized
from datetime import date
from typing import Any

import attrs

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def at_least(low: float) -> Validator:
    """Refuse numbers below ``low``, and what is not finite."""
    return _check(lambda value: low <= value < math.inf, f"must be at least {low}")


def above(low: float) -> Validator:
    """Refuse numbers of ``low`` and below, and what is not finite."""
    return _check(lambda value: low < value < math.inf, f"must be above {low}")


def open_unit_interval(instance: Any, field: attrs.Attribute[Any], value: float) -> None:
    """Refuse what leaves nothing on one of two sides: 0 and below, 1 and above."""
    _check(lambda one: 0 < one < 1, "must be above 0 and below 1")(instance, field, value)


def unit_interval(instance: Any, field: attrs.Attribute[Any], value: float) -> None:
    """Refuse what is no part of a whole: 0 and below, and above 1."""
    _check(lambda one: 0 < one <= 1, "must be above 0 and at most 1")(instance, field, value)


def below(high: float) -> Validator:
    """Refuse negative numbers, and those of ``high`` and above."""
    return _check(lambda value: 0 <= value < high, f"must be at least 0 and below {high}")


def optional(check: Validator) -> Validator:
    """Ask ``check`` of every value but None, which a recipe writes by leaving the key out."""

    def validate(instance: Any, field: attrs.Attribute[Any], value: Any) -> None:
        """Refuse a value that is given and wrong."""
        if value is not None:
            check(instance, field, value)

    return validate


def or_text(check: Validator) -> Validator:
    """Ask ``check`` of every value but words, of which the type names those that are allowed."""

    def validate(instance: Any, field: attrs.Attribute[Any], value: Any) -> None:
        """Refuse a number that is wrong."""
        if not isinstance(value, str):
            check(instance, field, value)

    return validate


def not_empty(instance: Any, field: attrs.Attribute[Any], value: Sized) -> None:
    """Refuse an empty table or string."""
    if not value:
        raise ValueError(f"`{field.name}` must not be empty")


def iso_date(instance: Any, field: attrs.Attribute[Any], value: str) -> None:
    """Refuse strings that are no day of the calendar."""
    try:
        date.fromisoformat(value)
    except ValueError:
        raise ValueError(f'`{field.name}` must be a day as "2026-11-30", not "{value}"') from None


def contains(part: str) -> Validator:
    """Refuse strings without ``part``."""
    return _check(lambda value: part in value, f'must contain "{part}"')


def each(check: Validator) -> Validator:
    """Ask ``check`` of every value of a table."""

    def validate(instance: Any, field: attrs.Attribute[Any], value: Mapping[str, Any]) -> None:
        """Refuse a table with a wrong value."""
        for one in value.values():
            check(instance, field, one)

    return validate


def _check(accepts: Callable[[Any], bool], law: str) -> Validator:
    def validate(instance: Any, field: attrs.Attribute[Any], value: Any) -> None:
        """Refuse a value, by the field's name."""
        if not accepts(value):
            shown = f'"{value}"' if isinstance(value, str) else value
            raise ValueError(f"`{field.name}` {law}, not {shown}")

    return validate
