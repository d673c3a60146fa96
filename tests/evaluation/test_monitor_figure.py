"""The picture of a monitored run shows what was measured, given up and chosen."""

from typing import Any

import pytest
from matplotlib.figure import Figure

from safe_framework.runs.report.curves import draw, monitor_figure, summary


def look(step: int, gain: float, kept: float) -> dict[str, Any]:
    """An evaluation's event."""
    around = {"n": 30}
    return {
        "event": "evaluation",
        "step": step,
        "limit": 0.995,
        "gain": {"value": gain, "low": gain - 0.05, "high": gain + 0.05, **around},
        "retention": {"value": kept, "low": kept - 0.01, "high": kept, **around},
    }


EVENTS = [
    {"event": "stage", "step": 0, "stage": "easy <first>", "number": 0},
    look(0, 0.1, 1.0),
    look(10, 0.4, 0.996),
    {"event": "stage", "step": 10, "stage": "all", "number": 1},
    look(20, 0.6, 0.91),
    {"event": "rollback", "step": 20, "to": 10},
    look(30, 0.5, 0.997),
    {"event": "best", "step": 30, "chosen": 30},
]


@pytest.fixture
def picture() -> Figure:
    """The picture of ``EVENTS``."""
    drawn = Figure()
    draw(drawn, EVENTS)
    return drawn


def test_each_panel_has_the_measured_values(picture: Figure) -> None:
    """Law: gain is above, retention below, each through its measured values."""
    above, below = picture.axes
    assert above.lines[0].get_xydata().tolist() == [[0, 0.1], [10, 0.4], [20, 0.6], [30, 0.5]]
    assert below.lines[0].get_xydata().tolist() == [[0, 1], [10, 0.996], [20, 0.91], [30, 0.997]]


def test_a_rollback_is_crossed_out(picture: Figure) -> None:
    """Law: in both panels a cross lies on what was given up, and a ring on what was chosen."""
    for axes, given_up, chosen in zip(picture.axes, (0.6, 0.91), (0.5, 0.997), strict=True):
        marks = {line.get_marker(): line.get_xydata().tolist() for line in axes.lines[1:]}
        assert marks["x"] == [[20, given_up]]
        assert [30, chosen] in [line.get_xydata().tolist()[0] for line in axes.lines[1:]]


def test_stages_are_shaded_and_named(picture: Figure) -> None:
    """Law: each stage is shaded over its steps in both panels, and named once."""
    spans = [[(p.get_x(), p.get_width()) for p in axes.patches] for axes in picture.axes]
    assert spans == [[(0, 10), (10, 20)]] * 2
    assert [text.get_text() for text in picture.axes[0].texts] == ["easy <first>", "all"]
    assert not picture.axes[1].texts


def test_it_is_told_in_words() -> None:
    """Law: who does not see the picture is told its first and last values and the rollbacks."""
    assert summary(EVENTS) == (
        "Gain and retention at 4 steps: right answers from 10.0 % to 50.0 %, tokens kept from "
        "100 % to 99.70 %. Rolled back at step 20."
    )
    assert summary(EVENTS[1:2]).endswith("Nothing was rolled back.")


def test_without_measurements_there_is_none() -> None:
    """Law: a run that measured nothing has no such figure."""
    assert monitor_figure([]) == monitor_figure(EVENTS[:1]) == []
    (shown,) = monitor_figure(EVENTS)
    assert "easy &lt;first&gt;" in shown
