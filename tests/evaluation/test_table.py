"""What a person reads in the terminal, and in which words."""

import io

import attrs
import pytest
from rich.console import Console

from safe_framework.errors import DataError
from safe_framework.evaluation.results import GateZero
from safe_framework.evaluation.summary import headlines, sections, table


def printed(evaluation, targets=None, width=100):
    """What the terminal shows."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(evaluation, targets))
    return console.export_text()


def rows(evaluation, targets=None):
    """The first row of each name in the details."""
    groups = sections(evaluation, targets)
    return {row.name: row for group in reversed(groups) for row in group.rows}


def test_three_numbers_come_first(evaluation):
    """Gain, off and keeps stand above all details, in this order."""
    text = printed(evaluation)
    columns = [
        text.index(word)
        for word in ("+72.7 points", "bit for bit", "98.0 %", "accuracy with audio")
    ]
    assert columns == sorted(columns)
    assert [headline.number for headline in headlines(evaluation)] == [
        "+72.7 points",
        "bit for bit",
        "98.0 %",
    ]


def test_costs_are_in_units_of_people(evaluation):
    """Bytes and seconds are recognised by the end of their names."""
    found = rows(evaluation)
    assert (found["adapter"].value, found["train"].value) == ("51.2 kB", "2 min 10 s")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_result_is_shown_whole(evaluation, width):
    """Neither a name, a number nor an interval is cut at usual widths."""
    text = printed(evaluation, width=width)
    for row in rows(evaluation).values():
        assert row.name in text
        assert row.value in text
        assert row.interval in text


def test_targets_are_marked(evaluation):
    """A target is met where the value is not below it; nothing else of the gain is judged."""
    found = rows(evaluation, {"accuracy": 0.5, "agreement": 0.995})
    assert found["accuracy with audio"].met is True
    assert found["irrelevant"].met is False
    assert found["linear probe"].met is None
    assert "✗" in printed(evaluation, {"agreement": 0.995})
    assert "✗" not in printed(evaluation)


def test_a_broken_law_is_shouted(evaluation):
    """Where off is not the base, the headline and the row say so."""
    broken = attrs.evolve(evaluation, gate_zero=GateZero(True, False, 11))
    assert headlines(broken)[1].number == "NOT the base"
    assert rows(broken)["tokens, gate at 0"].value == "DIFFER"
    assert "✗" in printed(broken)


def test_an_unknown_target_is_named(evaluation):
    """A misspelt target is not passed over."""
    with pytest.raises(DataError, match="`acuracy` is no target"):
        table(evaluation, {"acuracy": 0.5})


def test_text_is_not_taken_as_markup(evaluation):
    """A modality's name cannot change how the table looks."""
    named = attrs.evolve(evaluation, modality="[red]touch[/red]")
    assert "[red]touch[/red]" in printed(named, width=140)
