"""Aligned columns of plain text, which can be read, searched and piped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[str]], indent: str = "  ") -> str:
    """Rows as text, each column as wide as its widest cell.

    >>> print(table([("lora", "8"), ("perceiver", "12")]))
      lora       8
      perceiver  12
    """
    cells = [list(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)
