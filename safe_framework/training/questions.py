"""What an example is at each of its readings: which question, which variant of its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from safe_framework.training.batches import TokenizedExample

_MOST = 64  # questions of an example; a longer run asks them again
_MOST_IN_ALL = 100_000


class Questions:
    """The questions of some examples, each made once.

    An example that is asked one thing alone, about samples that are not varied, is the same at
    each reading.

    Args:
        examples: of the task.
    """

    def __init__(self, examples: Sequence[TokenizedExample]) -> None:
        self.examples = examples
        self._most = max(1, min(_MOST, _MOST_IN_ALL // max(1, len(examples))))
        self._made: dict[tuple[int, int], TokenizedExample] = {}

    def of(self, index: int, turn: int) -> TokenizedExample:
        """An example, asked the question of its reading number ``turn``, with that variant.

        The first reading of every example meets another variant than its neighbour's.
        """
        return self._asked(index, turn).varied(index + turn)

    def _asked(self, index: int, turn: int) -> TokenizedExample:
        example = self.examples[index]
        if example.drawn is None:
            return example
        key = index, turn % self._most
        if key not in self._made:
            self._made[key] = example.drawn(key[1])
        return self._made[key]

    def read_in(self, order: Sequence[int]) -> list[TokenizedExample]:
        """The examples of a run, each asked another question at its next reading."""
        turns, found = Counter[int](), list[TokenizedExample]()
        for index in order:
            found.append(self.of(index, turns[index]))
            turns[index] += 1
        return found

    def all_of(self, order: Sequence[int] | None) -> list[TokenizedExample]:
        """Examples with every question that they, or a run, may ask.

        Args:
            order: of the run; None where a curriculum chooses.
        """
        found = [example for example in self.examples if example.drawn is None]
        if order is not None:
            asked = [index for index in order if self.examples[index].drawn is not None]
            return found + self.read_in(asked)
        many = [index for index, example in enumerate(self.examples) if example.drawn is not None]
        return found + [self._asked(index, turn) for index in many for turn in range(self._most)]
