"""Plain values as TOML: tables as sections, what is within them on one line each."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def toml_text(text: str) -> str:
    r"""A text as TOML writes it, whose strings are JSON's but for one character.

    >>> print(toml_text('a "b"'), toml_text("c\x7f"))
    "a \"b\"" "c\u007F"
    """
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def plain(value: Any) -> Any:
    """The value as TOML's types, numbers of NumPy and PyTorch among them.

    Raises:
        TypeError: TOML cannot hold it.
    """
    if isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)  # a number of NumPy may be a float
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        return [plain(item) for item in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return plain(value.item())
    raise TypeError(f"a `{type(value).__name__}` cannot be written in TOML")


def toml_value(value: Any) -> str:
    """A plain value on one line.

    >>> toml_value({"use": "lora", "layers": [16, 20], "alpha": 32.0, "dora": True})
    '{ use = "lora", layers = [16, 20], alpha = 32.0, dora = true }'
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return toml_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # nan, inf, -inf
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    return f"[{', '.join(map(toml_value, value))}]"


def toml_document(tables: Mapping[str, Any]) -> str:
    """A document of tables; a table whose values are all tables is written as those.

    Args:
        tables: plain values, each a table or an array of tables.
    """
    return "\n".join(section for key, value in tables.items() for section in _sections(key, value))


def _sections(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        if value and all(isinstance(item, Mapping) for item in value.values()):
            return [f"[{name}.{_key(key)}]\n{_lines(item)}" for key, item in value.items()]
        return [f"[{name}]\n{_lines(value)}"]
    return [f"[[{name}]]\n{_lines(item)}" for item in value]


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{_key(key)} = {toml_value(item)}\n" for key, item in table.items())


def _key(key: str) -> str:
    return key if key and _BARE.issuperset(key) else toml_text(key)
