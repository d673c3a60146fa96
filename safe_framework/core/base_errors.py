"""Errors of a base that is tried, told from those of this library and of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safe_framework.errors import SafeError, UnsupportedBaseError
from safe_framework.utils.tensors import is_out_of_memory


@contextmanager
def base_errors() -> Iterator[None]:
    """Within the block a base is called; what it raises is an ``UnsupportedBaseError``.

    But for errors of this library, and of the machine: of its disk or its memory.
    """
    try:
        yield
    except (SafeError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever a third-party base raises
        if is_out_of_memory(error):
            raise
        raise UnsupportedBaseError(f"{type(error).__name__}: {error}") from error
