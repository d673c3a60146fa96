"""Samples as rows and callers hold them, one or several of a modality; torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Sample = Any
"""One raw sample, such as a waveform; what it may be is the encoder's to say, but for a list."""

_Item = TypeVar("_Item")


class Several(tuple[_Item, ...]):
    """What several samples of one modality in one text are, in order: samples, frames, files.

    A single one stands for itself, and None for none: ``each_of`` and ``together`` go both ways.
    """


def each_of(held: _Item | Several[_Item] | None) -> tuple[_Item, ...]:
    """Those that are held, in order.

    >>> each_of(Several("ab")), each_of("a"), each_of(None)
    (('a', 'b'), ('a',), ())
    """
    if held is None:
        return ()
    return tuple(held) if isinstance(held, Several) else (held,)


def together(items: Sequence[_Item]) -> _Item | Several[_Item] | None:
    """Several if there are, the only one itself, or None."""
    if len(items) > 1:
        return Several(items)
    return items[0] if items else None


def sample_counts(held: Mapping[str, Any]) -> dict[str, int]:
    """How many samples there are of each modality that has some."""
    counts = {name: len(each_of(one)) for name, one in held.items()}
    return {name: count for name, count in counts.items() if count}
