"""The confusion matrix as a figure: what was answered where something else was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from safe_framework.runs.report.html import ACCENT, INK, PAPER, WRONG, figure
from safe_framework.runs.report.html_markup import Markup
from safe_framework.evaluation.results import OTHER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 30  # more rows than this cannot be read
_CELL = 0.27  # inches
_LETTER = 0.075  # inches
_LABEL = 24  # letters

Counts = Mapping[str, Mapping[str, int]]


def matrix(confusion: Counts) -> Markup:
    """A row for each expected answer, a column for each of them and one for the others."""
    rows = _commonest(confusion)
    shown = {name: _merged(confusion[name], rows) for name in rows}
    columns = [*rows, OTHER] if any(row[OTHER] for row in shown.values()) else rows
    total = sum(sum(row.values()) for row in shown.values())
    right = sum(row[name] for name, row in shown.items())
    left_out = len(confusion) - len(rows)
    margin = _LETTER * min(_LABEL, max(len(name) for name in columns)) + 0.4
    return figure(
        partial(_draw, shown=shown, columns=columns),
        name="confusion",
        width=_CELL * len(columns) + margin,
        height=_CELL * len(rows) + margin,
        alt=f"Confusion matrix of {len(rows)} expected answers: {right} of {total} right. "
        + _worst(shown),
        caption="Rows are expected answers, columns given ones; a stronger colour is a larger "
        "share of its row." + (f" The {_MOST} commonest; {left_out} left out." if left_out else ""),
    )


def _commonest(confusion: Counts) -> list[str]:
    sizes = {name: sum(row.values()) for name, row in confusion.items()}
    return sorted(sorted(sizes, key=lambda name: (-sizes[name], name))[:_MOST])


def _merged(row: Mapping[str, int], columns: Sequence[str]) -> Counter[str]:
    merged: Counter[str] = Counter()
    for name, count in row.items():
        merged[name if name in columns else OTHER] += count
    return merged


def _worst(shown: Mapping[str, Counter[str]]) -> str:
    wrong = [
        (count, expected, given)
        for expected, row in shown.items()
        for given, count in row.items()
        if given != expected
    ]
    if not wrong:
        return "There is no mistake."
    count, expected, given = max(wrong, key=lambda entry: entry[0])
    return f"The commonest mistake: {given} for {expected} ({count})."


def _draw(picture: Figure, shown: Mapping[str, Counter[str]], columns: Sequence[str]) -> None:
    axes = picture.add_subplot()
    for y, (expected, row) in enumerate(shown.items()):
        total = sum(row.values())
        for name, count in row.items():
            _cell(axes, columns.index(name), y, count, count / total, name == expected)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=90)
    axes.set_yticks(range(len(shown)), [_short(name) for name in shown])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _cell(axes: Axes, x: int, y: int, count: int, share: float, right: bool) -> None:
    from matplotlib.patches import Rectangle

    colour = ACCENT if right else WRONG
    axes.add_patch(
        Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=colour, alpha=0.15 + 0.85 * share)
    )
    ink = PAPER if share > 0.5 else INK
    axes.text(x, y, str(count), ha="center", va="center_baseline", color=ink, fontsize=8)


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"
