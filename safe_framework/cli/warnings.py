"""Warnings as a command shows them: a line for each, and one for all that say the same again."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_SHOWN = 3
"""Of one kind; the others are counted."""


@contextmanager
def folded_warnings() -> Iterator[None]:
    """Within the block, show a line for each warning; of a kind the first few, and how many more.

    Warnings are of one kind that come from the same line of code.
    """
    counts, texts = Counter[tuple[str, int]](), dict[tuple[str, int], str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Print it, unless it has been said often enough."""
        kind, text = (filename, lineno), " ".join(str(message).split())
        counts[kind] += 1
        if counts[kind] <= _SHOWN and text != texts.get(kind):
            print(f"warning: {text}", file=sys.stderr)
        texts[kind] = text

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before
        for kind, count in counts.items():
            if count > _SHOWN:
                print(
                    f"warning: and {count - _SHOWN} more, the last: {texts[kind]}", file=sys.stderr
                )
