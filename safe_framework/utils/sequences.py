"""Sequences whose items are made when they are read, and items a few at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

T_co = TypeVar("T_co", covariant=True)
_Item = TypeVar("_Item")


class LazySequence(Sequence[T_co], ABC):
    """What a subclass need not write to be a sequence: slices, and indices from the end."""

    @abstractmethod
    def made(self, number: int) -> T_co:
        """The item at an index from 0 to ``len(self) - 1``."""

    @overload
    def __getitem__(self, index: int) -> T_co: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T_co]: ...

    def __getitem__(self, index: int | slice) -> T_co | Sequence[T_co]:
        numbers = range(len(self))[index]
        if isinstance(numbers, int):
            return self.made(numbers)
        return [self.made(number) for number in numbers]


def batched(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """The items in order, ``size`` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
