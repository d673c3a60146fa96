"""A sequence whose items are made when they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

T_co = TypeVar("T_co", covariant=True)


class MadeWhenRead(Sequence[T_co], ABC):
    """What a subclass need not write to be a sequence: slices, and places from the end."""

    @abstractmethod
    def made(self, number: int) -> T_co:
        """The item at a place from 0 to ``len(self) - 1``."""

    @overload
    def __getitem__(self, place: int) -> T_co: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[T_co]: ...

    def __getitem__(self, place: int | slice) -> T_co | Sequence[T_co]:
        numbers = range(len(self))[place]
        if isinstance(numbers, int):
            return self.made(numbers)
        return [self.made(number) for number in numbers]


# Items a few at a time.


_Item = TypeVar("_Item")


def batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """The items in order, ``size`` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
