"""Attention: heat maps over each clip's timeline, and the numbers of every layer and head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safe_framework.data.audio import Waveform
from safe_framework.evaluation.attention import AttentionSummary
from safe_framework.evaluation.results import Answered
from safe_framework.interfaces.samples import each_of
from safe_framework.runs.report.html import ACCENT, SOFT, Markup, element, figure
from safe_framework.runs.report.results import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAPS = 4
_ROW = 0.085  # inches
_WIDTH = 4.6
_POINTS = 160  # of a drawn wave

_Values = NDArray[np.float64]


def attention_maps(found: Sequence[AttentionSummary], answers: Sequence[Answered]) -> list[Markup]:
    """A heat map for each of a few samples, and a table of means over all of them."""
    by_place = {row.place: row for row in answers}
    maps = [_map(row, by_place.get(row.place), number) for number, row in enumerate(found[:_MAPS])]
    return [
        element("p", _READING, class_="soft"),
        element("div", *maps, class_="curves"),
        element("details", element("summary", "Every layer and head"), _table(found)),
    ]


_READING = (
    "What the answer's tokens attended to. A row is one head of a fused layer, a column a stretch "
    "of the sample: a token's share is spread over the stretches that the token depends on, which "
    "was measured by leaving each of them out. A stronger colour is a larger share within its map."
)


def _map(row: AttentionSummary, answered: Answered | None, number: int) -> Markup:
    values = np.array(row.timeline, dtype=np.float64)  # (layers, heads, stretches); None is NaN
    wave = _wave(answered)
    strongest = np.unravel_index(np.nanargmax(values), values.shape)
    name = answered.expected if answered else row.place
    return figure(
        partial(_draw, row=row, values=values, wave=wave),
        name=f"attention-{number}",
        width=_WIDTH,
        height=_ROW * values.shape[0] * values.shape[1] + (0.5 if wave is None else 1.0) + 0.2,
        alt=f"Attention to {name} over its timeline: strongest at layer "
        f"{row.layers[int(strongest[0])]}, head {int(strongest[1])}, stretch "
        f"{int(strongest[2]) + 1} of {values.shape[2]}.",
        caption=f"{name} ({row.place})",
    )


def _wave(answered: Answered | None) -> _Values | None:
    """The loudest sample of each stretch of a sound, or of several in a row, (points,)."""
    sounds = () if answered is None else each_of(answered.sample)
    if not sounds or not all(isinstance(one, Waveform) for one in sounds):
        return None
    whole = np.concatenate([np.asarray(one.values, np.float64) for one in sounds])
    parts = np.array_split(np.abs(whole), _POINTS)
    peaks: _Values = np.array([part.max() if len(part) else 0.0 for part in parts])
    loudest: _Values = peaks / max(float(peaks.max()), 1e-9)
    return loudest


def _draw(picture: Figure, row: AttentionSummary, values: _Values, wave: _Values | None) -> None:
    rows = values.reshape(-1, values.shape[2])
    length = row.seconds or 1.0
    if wave is None:
        axes = picture.add_subplot()
    else:
        ratios = [0.5, _ROW * len(rows)]
        above, axes = picture.subplots(2, 1, sharex=True, height_ratios=ratios)
        _draw_wave(above, wave, length)
    _draw_cells(axes, rows, length)
    heads = values.shape[1]
    middles = [heads * (index + 0.5) for index in range(len(row.layers))]
    axes.set_yticks(middles, [f"layer {layer}" for layer in row.layers])
    for index in range(1, len(row.layers)):
        axes.axhline(heads * index, color=SOFT, linewidth=0.8)
    axes.set_ylim(len(rows), 0)
    axes.set_xlim(0, length)
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("seconds" if row.seconds else "part of the sample")


def _draw_wave(axes: Axes, wave: _Values, length: float) -> None:
    times = np.linspace(0, length, len(wave))
    axes.fill_between(times, -wave, wave, color=SOFT, linewidth=0, alpha=0.7)
    axes.set_axis_off()


def _draw_cells(axes: Axes, rows: _Values, length: float) -> None:
    from matplotlib.patches import Rectangle

    step, most = length / rows.shape[1], max(float(np.nanmax(rows)), 1e-9)
    for y, row in enumerate(rows):
        for x, share in enumerate(row):
            if not math.isnan(share) and share / most > 0.02:
                alpha = round(share / most, 2)
                cell = Rectangle((x * step, y), step * 0.96, 0.9, facecolor=ACCENT, alpha=alpha)
                axes.add_patch(cell)


def _table(found: Sequence[AttentionSummary]) -> Markup:
    columns = [np.array([getattr(row, name) for row in found], np.float64) for name in _NUMBERS]
    largest = columns[1].max(axis=0)
    means = [column.mean(axis=0) for column in columns]
    means[1] = largest
    rows: list[tuple[str, ...]] = []
    for index, layer in enumerate(found[0].layers):
        for head in range(means[0].shape[1]):
            numbers = [_number(column[index, head]) for column in means]
            rows.append((f"layer {layer}, head {head}", *numbers))
    caption = f"Means over {len(found)} samples and their texts; of `max`, the largest"
    return table(caption, ("", "mean", "max", "entropy", "heard"), rows)


_NUMBERS = ("mean", "max", "entropy", "heard")


def _number(value: Any) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
