"""What a plugin's Google docstring says of it and of each of its options."""

from __future__ import annotations

import ast
import re
from importlib.metadata import EntryPoint

from safe_framework.config.plugin_options_source import UnreadableError, class_source

_ARGUMENT = re.compile(r"    (\w+)(?: \([^)]*\))?: (.*)")


def docstring(point: EntryPoint) -> str:
    """A plugin's docstring, read without importing it; empty if it cannot be read."""
    try:
        return ast.get_docstring(class_source(point).node) or ""
    except UnreadableError:
        return ""


def summary(text: str) -> str:
    r"""What comes before the first section, as one paragraph a line.

    >>> summary('''Pools frames.
    ...
    ... Each token is a
    ... weighted mean.
    ...
    ... Args:
    ...     tokens: how many.''')
    'Pools frames.\nEach token is a weighted mean.'
    """
    before = re.split(r"^[A-Z]\w+:$", text, maxsplit=1, flags=re.MULTILINE)[0]
    paragraphs = re.split(r"\n\s*\n", before.strip())
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def arguments(text: str) -> dict[str, str]:
    r"""What the ``Args`` section says of each argument, on one line.

    >>> arguments("Args:\n    rank: of every\n        pair.\n    alpha: scale.")
    {'rank': 'of every pair.', 'alpha': 'scale.'}
    """
    found: dict[str, str] = {}
    name = ""
    for line in _section(text, "Args"):
        if match := _ARGUMENT.fullmatch(line):
            name = match[1]
            found[name] = match[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def _section(text: str, title: str) -> list[str]:
    """The indented lines under ``title:``."""
    match = re.search(rf"^{title}:\n((?:(?: +.*)?\n?)*)", text, flags=re.MULTILINE)
    return match[1].splitlines() if match else []
