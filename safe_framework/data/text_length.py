"""Whether a row's text fits into the base's context."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from safe_framework.errors import DataError
from safe_framework.pretrained.base_model import context_length, load_context_length
from safe_framework.pretrained.base_processor import text_tokenizer

if TYPE_CHECKING:
    from safe_framework.config.schema import BaseSpec

_SMALLEST = 512
"""Bytes that fit everywhere: no token is less than one, and no base's context is shorter."""


class TextLimit:
    """Counts tokens of texts that may be too long, and refuses those that are.

    Pictures and markers are not counted: training, which makes their tokens, counts again.

    Args:
        base: whose config and processor are fetched once a text is long enough to ask.
        processor: gives the base's processor or tokenizer.
        config: the base's, which is fetched if None.
    """

    def __init__(self, base: BaseSpec, processor: Callable[[], Any], config: Any = None) -> None:
        self._base, self._processor, self._config = base, processor, config

    @cached_property
    def tokens(self) -> int | None:
        """The base's context; None where it has no limit that it tells of."""
        if self._config is not None:
            return context_length(self._config)
        return load_context_length(self._base)

    def check(self, place: str, text: str, answer: str = "") -> None:
        """Refuse a text that is longer, its answer included.

        Raises:
            DataError: it is; the message gives the place of its row.
        """
        size = len(text.encode("utf-8", "replace")) + len(answer.encode("utf-8", "replace"))
        if size < _SMALLEST or self.tokens is None or size < self.tokens:
            return
        tokenizer = text_tokenizer(self._processor())
        count = sum(len(tokenizer(part)["input_ids"]) for part in (text, answer) if part)
        check_length(place, count, self.tokens)


def check_length(place: str, count: int, context: int | None) -> None:
    """Refuse a row of more tokens than a base's context has positions.

    Args:
        place: of the row.
        count: its tokens, the answer's among them.
        context: of the base; None where it has no limit.

    Raises:
        DataError: it is longer.
    """
    if context is not None and count > context:
        raise DataError(
            f"{place}: the text is too long: it has {count} tokens, and the base's context "
            f"{context} positions",
            hint='shorten or split it, or leave such rows out: `on_bad_row = "skip"` in [data]',
        )
