"""Training curves: one small picture for each thing that was logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safe_framework.runs.report.html import ACCENT, INK, SOFT, WRONG, Markup, figure, svg_file
from safe_framework.utils.formatting import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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


# How gain and retention went over a training run, as its monitor measured them.


_WIDTH, _HEIGHT = 8.8, 4.4  # inches
_PANELS = {"gain": "right answers", "retention": "next tokens kept"}

Events = Sequence[Mapping[str, Any]]


def monitor_figure(events: Events) -> list[Markup]:
    """The figure for a report; nothing where nothing was measured."""
    if not _of(events, "evaluation"):
        return []
    return [
        figure(
            partial(draw, events=events),
            name="monitor",
            width=_WIDTH,
            height=_HEIGHT,
            alt=summary(events),
            caption="Measured on held-out data while training went on, with 95 % intervals. A "
            "cross is an adapter that was given up, a ring the one that was chosen, the dashed "
            "line what still counts as kept.",
        )
    ]


def write_figure(path: Path, events: Events) -> None:
    """The same as an SVG file of its own, where there is something to show.

    Raises:
        DataError: Matplotlib is not installed.
    """
    if _of(events, "evaluation"):
        svg = svg_file(partial(draw, events=events), name="monitor", width=_WIDTH, height=_HEIGHT)
        path.write_text(svg, "utf-8")


def summary(events: Events) -> str:
    """What the figure shows, in words."""
    looks, rolled = _of(events, "evaluation"), _of(events, "rollback")
    first, last = looks[0], looks[-1]
    steps = ", ".join(str(event["step"]) for event in rolled)
    return (
        f"Gain and retention at {len(looks)} steps: right answers from "
        f"{percent(first['gain']['value'])} to {percent(last['gain']['value'])}, tokens kept from "
        f"{percent(first['retention']['value'])} to {percent(last['retention']['value'])}. "
        + (f"Rolled back at step {steps}." if rolled else "Nothing was rolled back.")
    )


def draw(picture: Figure, events: Events) -> None:
    """Two panels above each other: gain, and retention with its limit."""
    above, below = picture.subplots(2, 1, sharex=True)
    for axes, key in ((above, "gain"), (below, "retention")):
        _stages(axes, events, named=key == "gain")
        _monitor_line(axes, events, key)
        axes.set_ylabel(_PANELS[key])
    below.axhline(_of(events, "evaluation")[-1]["limit"], color=SOFT, linestyle="--", linewidth=0.8)
    below.set_xlabel("step")


def _monitor_line(axes: Axes, events: Events, key: str) -> None:
    looks = _of(events, "evaluation")
    steps = [event["step"] for event in looks]
    found = [event[key] for event in looks]
    values = [one["value"] for one in found]
    axes.fill_between(
        steps,
        [one["low"] for one in found],
        [one["high"] for one in found],
        color=ACCENT,
        alpha=0.18,
        linewidth=0,
    )
    axes.plot(steps, values, color=ACCENT, linewidth=1.8, marker="o", markersize=3)
    at = dict(zip(steps, values, strict=True))
    for event in _of(events, "rollback"):
        axes.axvline(event["step"], color=WRONG, linewidth=0.8)
        axes.plot(event["step"], at[event["step"]], "x", color=WRONG, markersize=8)
    for event in _of(events, "best"):
        chosen = event["chosen"]
        axes.plot(
            chosen, at[chosen], "o", markersize=10, markerfacecolor="none", markeredgecolor=INK
        )


def _stages(axes: Axes, events: Events, *, named: bool) -> None:
    begun = _of(events, "stage")
    last = events[-1]["step"]
    ends = [*(event["step"] for event in begun[1:]), last]
    for number, (event, end) in enumerate(zip(begun, ends, strict=False)):
        axes.axvspan(
            event["step"], end, color=SOFT, alpha=0.16 if number % 2 else 0.06, linewidth=0
        )
        if named:
            place = (event["step"], 1.02)
            axes.annotate(
                event["stage"], place, xycoords=("data", "axes fraction"), color=SOFT, fontsize=8
            )


def _of(events: Events, kind: str) -> list[Mapping[str, Any]]:
    return [event for event in events if event["event"] == kind]
