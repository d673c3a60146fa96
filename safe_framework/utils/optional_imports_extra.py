"""Libraries that only some kinds of data need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from safe_framework.errors import DataError


def needed(module: str, why: str) -> Any:
    """Import a module of the extra ``data``.

    Args:
        module: its dotted name.
        why: what needs it, for the message.

    Raises:
        DataError: it cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(
            f"{why}, which cannot be imported: {error}",
            hint="pip install 'safe-framework[data]'",
        ) from error
