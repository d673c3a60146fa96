"""The equal parts in which a step is computed: by devices, and by each device one after another.

What a step is depends on the recipe alone, so a run on two devices, or in two parts on one, comes
to the weights of a run that takes each step whole, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import attrs

from safe_framework.errors import SafeError

_Row = TypeVar("_Row")


@attrs.frozen
class Part:
    """One part of a step.

    Attributes:
        number: of this part, from 0.
        count: how many parts the step has.
    """

    number: int = 0
    count: int = 1

    def of(self, rows: Sequence[_Row]) -> Sequence[_Row]:
        """This part's rows of the step's.

        >>> [Part(number, 2).of("abcd") for number in range(2)]
        ['ac', 'bd']
        """
        return rows[self.number :: self.count]


WHOLE = Part()


def rows_of_part(key: str, rows: int, devices: int, accumulation: int) -> int:
    """How many of a step's ``rows`` are in each part.

    Args:
        key: of the recipe, which says how many rows there are.
        rows: in a step.
        devices: that share a step.
        accumulation: parts that each of them computes.

    Raises:
        SafeError: the rows cannot be shared out evenly.

    >>> rows_of_part("batch_size", 16, devices=2, accumulation=4)
    2
    """
    parts = devices * accumulation
    if rows % parts:
        raise SafeError(
            f"`{key}` of {rows} cannot be shared out evenly among {devices} devices with "
            f"`gradient_accumulation_steps` of {accumulation}",
            hint=f"make `{key}` a multiple of {parts}",
        )
    return rows // parts
