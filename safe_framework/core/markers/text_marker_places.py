"""Where in its ids a text is cut, when only the text says where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from safe_framework.errors import SampleError

_MERGED = 3  # ids at the edge of a cut that may come out otherwise in the whole text


class Places:
    """Finds places in texts that a tokenizer has made ids of.

    Args:
        tokenizer: without a processor around it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def find(self, word: str, ids: Sequence[int], before: str, after: str) -> int:
        """How many ids come before a cut of the text, whose halves are tokenised to find it.

        A base's processor may put many ids for an image; the half without images decides.
        """
        first = len(self._edges[0]) if _begins(ids, self._edges[0]) else 0
        last = len(self._edges[1]) if _begins(ids[::-1], self._edges[1][::-1]) else 0
        if not before:
            return first
        place = _cut(ids[first : len(ids) - last], self._bare(before), self._bare(after))
        if place is None:
            raise SampleError(
                f"the place of `{word}` is not to be found between what else is in the text",
                hint=f"put `{word}` before or behind all images",
            )
        return first + place

    def _bare(self, text: str) -> list[int]:
        """Ids of a piece of text, without what the tokenizer puts around a whole one."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        first = self._edges[0]
        return ids[len(first) :] if first and _begins(ids, first) else ids

    @cached_property
    def _edges(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind every text."""
        bare: list[int] = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = self.tokenizer("a")["input_ids"]
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return [], []


def _cut(body: Sequence[int], head: Sequence[int], tail: Sequence[int]) -> int | None:
    """Where a text's ids are cut, of whose halves one may have grown; None if it is not to be seen.

    >>> _cut([7, 7, 7, 7, 3, 4], [7, 3], [4])
    5
    """
    grown = Counter(body) - Counter([*head, *tail])
    same_head, same_tail = _common(body, head), _common(body[::-1], tail[::-1])
    places = same_head, len(body) - same_tail
    if not grown.keys() & set(head) and len(head) - same_head <= _MERGED:
        return places[0]
    if not grown.keys() & set(tail) and len(tail) - same_tail <= _MERGED:
        return places[1]
    return places[0] if places[0] == places[1] else None


def _begins(ids: Sequence[int], with_these: Sequence[int]) -> bool:
    return list(ids[: len(with_these)]) == list(with_these)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two texts begin with together."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))
