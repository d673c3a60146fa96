"""A value is taken only if it already has the wanted type."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Literal

import pytest

from safe_framework.config.type_checks import WRONG, Checker

TAKEN = [
    (8, int, 8),
    (8, float, 8.0),
    (8.5, float, 8.5),
    (True, bool, True),
    ("a", str, "a"),
    ("a", Literal["a", "b"], "a"),
    (1, Literal[1, 2], 1),
    ([1, 2], tuple[int, ...], (1, 2)),
    ([1, 2], Sequence[float], (1.0, 2.0)),
    ([], list[str], ()),
    ([1, "a"], tuple[int, str], (1, "a")),
    ({"a": [1]}, Mapping[str, tuple[int, ...]], {"a": (1,)}),
    ({"a": [1]}, dict, {"a": (1,)}),
    (3, int | None, 3),
    ("all", tuple[int, ...] | Literal["all"], "all"),
    ([0], tuple[int, ...] | Literal["all"], (0,)),
    ([1, [{"a": [2]}]], Any, (1, ({"a": (2,)},))),
]

REFUSED = [
    ("a", bytes, "`x` cannot be written in a recipe: it is a `bytes`", "leave it out"),
    ("8", int, '`x` must be a whole number, not the string "8"', "write `8` without quotes"),
    ("-8.5", float, '`x` must be a number, not the string "-8.5"', "write `-8.5` without quotes"),
    ("wide", int, '`x` must be a whole number, not the string "wide"', ""),
    (8.0, int, "`x` must be a whole number, not the number 8.0", "write `8`"),
    (8.9, int, "`x` must be a whole number, not the number 8.9", ""),
    (True, int, "`x` must be a whole number, not true", ""),
    (True, float, "`x` must be a number, not true", ""),
    (1, bool, "`x` must be true or false, not the number 1", ""),
    ("no", bool, '`x` must be true or false, not the string "no"', ""),
    ("true", bool,
     '`x` must be true or false, not the string "true"', "write `true` without quotes"),
    (8, str, "`x` must be a string, not the number 8", ""),
    (date(2020, 1, 1), str, "`x` must be a string, not a date or time", ""),
    ("c", Literal["a", "b"], '`x` must be "a" or "b", not the string "c"', ""),
    ("re", Literal["red", 1], '`x` must be "red" or 1, not the string "re"', "did you mean `red`?"),
    (True, Literal[1, 2], "`x` must be 1 or 2, not true", ""),
    ("qv", list[str], '`x` must be an array of strings, not the string "qv"', 'write `["qv"]`'),
    ({}, list[str], "`x` must be an array of strings, not a table", ""),
    ([1], tuple[int, str], "`x` must be an array of 2 items, not of 1", ""),
    (1, Mapping[str, int], "`x` must be a table, not the number 1", ""),
    ("1", int | None, '`x` must be a whole number, not the string "1"', "write `1` without quotes"),
    (1, list[int] | str, "`x` must be an array of whole numbers or a string, not the number 1", ""),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind", "expected"), TAKEN)
def test_a_fitting_value_is_taken(value, kind, expected):
    """A value keeps its type, but arrays become tuples and whole numbers may serve as numbers."""
    findings = []
    taken = Checker(findings).value(value, kind, ("x",))
    assert (taken, type(taken), findings) == (expected, type(expected), [])


@pytest.mark.parametrize(("value", "kind", "message", "hint"), REFUSED)
def test_any_other_value_is_refused(value, kind, message, hint):
    """Nothing is coerced; the message says what was wanted, what was there and how to fix it."""
    findings = []
    assert Checker(findings).value(value, kind, ("x",)) is WRONG
    assert [(found.path, found.message, found.hint) for found in findings] == [
        (("x",), message, hint)
    ]


def test_each_wrong_item_is_reported_at_its_index():
    """An array with two wrong items gives two findings."""
    findings = []
    Checker(findings).value([1, "2", 3.5], tuple[int, ...], ("x",))
    assert [found.path for found in findings] == [("x", 1), ("x", 2)]
    assert findings[0].message.startswith("`x[1]` must be a whole number")
