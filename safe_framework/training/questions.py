"""What an example is at each of its readings: which question, which variant of its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from safe_framework.core.prompt_rows import PromptRow, Rows
from safe_framework.training.batches import TokenizedExample

_MOST = 64  # questions of an example; a longer run asks them again
_MOST_IN_STAGES = 16  # all of which are kept ready, since a stage chooses which examples come
_MOST_IN_ALL = 100_000


class Questions:
    """The questions of some examples, each made once.

    An example that is asked one thing alone, about samples that are not varied, is the same at
    each reading.

    Args:
        examples: of the task.
        staged: whether a curriculum chooses among them.
    """

    def __init__(self, examples: Sequence[TokenizedExample], *, staged: bool = False) -> None:
        self.examples = examples
        most = _MOST_IN_STAGES if staged else _MOST
        self._most = max(1, min(most, _MOST_IN_ALL // max(1, len(examples))))
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

    def rows(self, order: Sequence[int] | None) -> Rows:
        """The row of every question that an example without others, or a run, may ask.

        Args:
            order: of the run; None where a curriculum chooses.
        """
        found: list[PromptRow] = [e.row for e in self.examples if e.drawn is None]
        many = [index for index, example in enumerate(self.examples) if example.drawn is not None]
        if order is None:
            found += [self._asked(index, turn).row for index in many for turn in range(self._most)]
        elif many:
            found += [example.row for example in self.read_in(order)]
        return found
