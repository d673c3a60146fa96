"""How gain and retention went over a training run, as its monitor measured them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_framework.runs.report.html import ACCENT, INK, SOFT, WRONG, figure, svg_file
from safe_framework.runs.report.html_markup import Markup
from safe_framework.utils.formatting import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
        _line(axes, events, key)
        axes.set_ylabel(_PANELS[key])
    below.axhline(_of(events, "evaluation")[-1]["limit"], color=SOFT, linestyle="--", linewidth=0.8)
    below.set_xlabel("step")


def _line(axes: Axes, events: Events, key: str) -> None:
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
