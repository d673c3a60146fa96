"""The gate sweep: gain and retention over the gate, and against each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from safe_framework.evaluation.metrics import interval
from safe_framework.evaluation.sweep import GatePoint, GateSweep
from safe_framework.runs.report.html import ACCENT, INK, SOFT, WRONG, Markup, element, figure
from safe_framework.runs.report.results import table
from safe_framework.utils.formatting import percent, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (4.6, 2.9)


def gate_sweep(sweep: GateSweep) -> list[Markup]:
    """The recommended gate, both pictures and every number of one modality."""
    return [
        element("p", *_advice(sweep)),
        element("div", _over_gate(sweep), _against(sweep), class_="curves"),
        element("details", element("summary", "Every gate"), _table(sweep)),
    ]


def _advice(sweep: GateSweep) -> tuple[str, ...]:
    best, widest = sweep.recommended, sweep.points[-1]
    if best is None:
        return (_without_advice(sweep),)
    budget = f" of next tokens unchanged beside irrelevant {sweep.modality}"
    gains = f" It answers {percent(best.accuracy.value)} right and keeps "
    kept = percent(best.kept.agreement.value)
    wide = "."
    if best != widest:
        right, left = widest.accuracy.value, widest.kept.agreement.value
        wide = f"; at gate {widest.gate:g} that is {percent(right)} and {percent(left)}."
    return (
        f"To keep at least {percent(sweep.budget)}{budget}, set the gate to ",
        element("strong", best.name),
        f".{gains}{kept}{wide}",
    )


def _without_advice(sweep: GateSweep) -> str:
    told = f"No gate that keeps at least {percent(sweep.budget)} of next tokens gains anything"
    if not sweep.hearing:
        return f"{told}, nor does any other."
    most = max(sweep.hearing, key=lambda point: point.kept.agreement.value)
    gained, kept = points(most.over_base.value), percent(most.kept.agreement.value)
    return f"{told}: gate {most.name} gains {gained} and keeps {kept}."


def _over_gate(sweep: GateSweep) -> Markup:
    first, last = sweep.points[0], sweep.points[-1]
    return figure(
        partial(_draw_over_gate, sweep=sweep),
        name=f"sweep-{sweep.modality}",
        width=_INCHES[0],
        height=_INCHES[1],
        alt=f"Over the gate from {first.gate:g} to {last.gate:g}, right answers go from "
        f"{percent(first.accuracy.value)} to {percent(last.accuracy.value)}, and tokens kept from "
        f"{percent(first.kept.agreement.value)} to {percent(last.kept.agreement.value)}.",
        caption="Over the gate; bands are 95 % intervals",
    )


def _draw_over_gate(picture: Figure, sweep: GateSweep) -> None:
    axes = picture.add_subplot()
    gates = [point.gate for point in sweep.points]
    lines = [
        ([point.accuracy for point in sweep.points], ACCENT, "right answers", "-"),
        ([point.kept.agreement for point in sweep.points], WRONG, "tokens kept", "--"),
    ]
    if seen := [point.seeing.unchanged for point in sweep.points if point.seeing]:
        lines.append((seen, INK, "picture answers kept", ":"))
    for estimates, colour, _, style in lines:
        low, high = [[100 * getattr(e, end) for e in estimates] for end in ("low", "high")]
        axes.fill_between(gates, low, high, color=colour, alpha=0.15, linewidth=0)
        values = [100 * e.value for e in estimates]
        axes.plot(gates, values, style, color=colour, linewidth=1.8, marker="o", markersize=3)
    for number, (_, colour, name, style) in enumerate(lines):
        dash = {"-": "\u2014", "--": "- -", ":": "\u00b7\u00b7\u00b7"}[style]
        place = (0.45, 0.33)[len(lines) > 2] * number
        axes.text(place, 1.04, f"{dash} {name}", color=colour, transform=axes.transAxes)
    if sweep.recommended is not None and not sweep.recommended.decides:
        axes.axvline(sweep.recommended.gate, color=SOFT, linewidth=0.8, linestyle=":")
    axes.set_xlabel("gate")
    axes.set_ylabel("%")
    axes.set_ylim(0, 104)


def _against(sweep: GateSweep) -> Markup:
    front = ", ".join(point.name for point in sweep.front)
    return figure(
        partial(_draw_against, sweep=sweep),
        name=f"pareto-{sweep.modality}",
        width=_INCHES[0],
        height=_INCHES[1],
        alt="Right answers against tokens kept, a dot for each gate. On the Pareto front: "
        f"{front}.{f' Recommended: {best.name}.' if (best := sweep.recommended) else ''}",
        caption="Gain against retention; filled dots are on the Pareto front",
    )


def _draw_against(picture: Figure, sweep: GateSweep) -> None:
    axes = picture.add_subplot()
    front = sorted(sweep.front, key=lambda point: point.kept.agreement.value)
    axes.plot(*_coordinates(front), color=ACCENT, linewidth=1.2)
    for points_, fill in ((sweep.all_points, "none"), (front, ACCENT)):
        axes.scatter(*_coordinates(points_), s=26, facecolor=fill, edgecolor=ACCENT, linewidth=1.2)
    axes.axvline(100 * sweep.budget, color=SOFT, linewidth=0.8, linestyle=":")
    best = [] if sweep.recommended is None else [sweep.recommended]
    axes.scatter(*_coordinates(best), s=110, facecolor="none", edgecolor=WRONG, linewidth=1.6)
    _name(axes, sweep)
    axes.set_xlabel("tokens kept, %")
    axes.set_ylabel("right answers, %")
    axes.margins(0.08, 0.12)


def _coordinates(found: Sequence[GatePoint]) -> tuple[list[float], list[float]]:
    kept = [100 * point.kept.agreement.value for point in found]
    return kept, [100 * point.accuracy.value for point in found]


def _name(axes: Axes, sweep: GateSweep) -> None:
    """Write gates next to their dots, but for those that would lie on another's."""
    named: list[tuple[float, float]] = []
    kept, right = _coordinates(sweep.all_points)
    spread = max(np.ptp(kept), 1e-9), max(np.ptp(right), 1e-9)
    ordered = sorted(sweep.all_points, key=lambda p: p != sweep.recommended)
    for point in ordered:
        (x,), (y,) = _coordinates([point])
        near = [abs(x - a) / spread[0] < 0.07 and abs(y - b) / spread[1] < 0.09 for a, b in named]
        if not any(near):
            named.append((x, y))
            axes.annotate(
                point.name, (x, y), (6, -3), textcoords="offset points",
                color=INK, fontsize=8, va="top",
            )  # fmt: skip


def _table(sweep: GateSweep) -> Markup:
    rows = []
    for point in sweep.all_points:
        notes = ["Pareto"] if point in sweep.front else []
        notes += ["recommended"] if point == sweep.recommended else []
        kept = point.kept.agreement
        rows.append(
            (
                point.name,
                f"{percent(point.accuracy.value)} ({interval(point.accuracy)})",
                points(point.over_base.value),
                f"{percent(kept.value)} ({interval(kept)})",
                f"{point.kept.kl.value:.2g}",
                *_seen(point),
                ", ".join(notes),
            )
        )
    seeing = ("VQA accuracy (95 %)", "picture answers kept") if sweep.points[0].seeing else ()
    head = ("gate", "right (95 %)", "over gate 0", "tokens kept (95 %)", "KL", *seeing, "")
    caption = f"{sweep.modality}: {len(sweep.places)} examples ({sweep.split}), {sweep.texts} texts"
    return table(caption, head, rows)


def _seen(point: GatePoint) -> tuple[str, ...]:
    if point.seeing is None:
        return ()
    accuracy = point.seeing.accuracy
    return (
        f"{percent(accuracy.value)} ({interval(accuracy)})",
        percent(point.seeing.unchanged.value),
    )
