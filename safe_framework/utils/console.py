"""The console that commands and runs print on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

    from rich.console import Console


def plain_console(
    *, quiet: bool = False, stderr: bool = False, file: TextIO | None = None
) -> Console:
    """A console that prints a text as it is: ``[data]`` is no markup, and no number is coloured.

    Args:
        quiet: print nothing.
        stderr: print to the stream of errors.
        file: print to this stream instead.
    """
    from rich.console import Console

    return Console(quiet=quiet, stderr=stderr, file=file, markup=False, highlight=False)
