"""Training curves: one small picture for each thing that was logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safe_framework.runs.report.html import ACCENT, figure
from safe_framework.runs.report.html_markup import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIRST = ("task_loss", "retention_loss", "loss", "gate")
_POINTS = 200  # more cannot be told apart in so small a picture
_WINDOW = 15  # points that one point of the bold line averages
_INCHES = (4.4, 2.0)

_Line = NDArray[np.float64]  # (points, 2): step and value


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """A figure for each quantity that has at least two finite values.

    Args:
        rows: each with ``step`` and any numbers logged at it.
    """
    logged = dict.fromkeys(key for row in rows for key in row if key != "step")
    names = [*(name for name in _FIRST if name in logged), *(n for n in logged if n not in _FIRST)]
    lines = {name: _line(rows, name) for name in names}
    return [_curve(name, line) for name, line in lines.items() if len(line) > 1]


def _line(rows: Sequence[Mapping[str, Any]], name: str) -> _Line:
    points = [(row["step"], row[name]) for row in rows if _is_finite(row.get(name))]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _curve(name: str, line: _Line) -> Markup:
    width, height = _INCHES
    title = name.replace("_", " ")
    (first_step, first), (last_step, last) = line[0], line[-1]
    return figure(
        partial(_draw, line=line, noisy=name.endswith("loss")),
        name=f"curve-{name}",
        width=width,
        height=height,
        alt=f"{title} against training step: {first:.3g} at step {first_step:.0f}, "
        f"{last:.3g} at step {last_step:.0f}",
        caption=title,
    )


def _draw(picture: Figure, line: _Line, noisy: bool) -> None:
    axes = picture.add_subplot()
    binned = _binned(line)
    if noisy:
        axes.plot(*binned.T, color=ACCENT, linewidth=0.8, alpha=0.35)
    axes.plot(*(_smoothed(binned) if noisy else binned).T, color=ACCENT, linewidth=1.8)
    axes.set_xlabel("step")
    axes.locator_params(nbins=5)
    if line[:, 1].min() >= 0:
        axes.set_ylim(bottom=0)


def _binned(line: _Line) -> _Line:
    parts = np.array_split(line, min(_POINTS, len(line)))
    return np.stack([part.mean(axis=0) for part in parts])


def _smoothed(line: _Line) -> _Line:
    """Means over a centred window, narrower towards the ends and for short lines."""
    last = len(line) - 1
    widest = min(_WINDOW, len(line) // 4) // 2
    reaches = [min(widest, place, last - place) for place in range(len(line))]
    means = [
        line[place - reach : place + reach + 1, 1].mean() for place, reach in enumerate(reaches)
    ]
    return np.column_stack([line[:, 0], means])
