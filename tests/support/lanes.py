"""Cases for the two lanes: a few that the fast one runs, and all for the whole suite."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def slow_but(fast: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """The values, slow but for those of ``fast``."""
    few, every = list(fast), list(values)
    assert few
    assert all(one in every for one in few)
    return [pytest.param(one, marks=[] if one in few else [pytest.mark.slow]) for one in every]


def combinations(*axes: Iterable[Any]) -> list[Any]:
    """Every combination of one value of each axis, slow but for as few as have each value once.

    What ``parametrize`` takes for as many arguments as there are axes.
    """
    values = [list(axis) for axis in axes]
    assert all(values)
    longest = max(map(len, values))
    fast = {tuple(number % len(axis) for axis in values) for number in range(longest)}
    return [
        pytest.param(
            *(axis[index] for axis, index in zip(values, indices, strict=True)),
            marks=[] if indices in fast else [pytest.mark.slow],
        )
        for indices in product(*(range(len(axis)) for axis in values))
    ]
