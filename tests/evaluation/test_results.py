"""`metrics.json` and how answers are scored."""

import json

import attrs
import pytest

from safe_framework.evaluation.gain import gain
from safe_framework.evaluation.results import OTHER, Answered, Evaluation


def row(expected, answer, **others):
    """One test row."""
    return Answered("p:1", "prompt", expected, answer, **{
        "shuffled": "", "base": "", "probe": "", **others
    })  # fmt: skip


def test_metrics_json_is_json_that_comes_back_equal(evaluation):
    """Every number survives, hostile text too; samples and files are not written."""
    text = evaluation.to_json()
    assert Evaluation.from_json(text) == evaluation
    plain = json.loads(text)
    assert plain["gain"]["accuracy"]["n"] == 11
    assert "sample" not in plain["answers"][0]
    assert "file" not in plain["answers"][0]


def test_metrics_json_holds_no_nan(evaluation):
    """What is no number in JSON is not written as one."""
    broken = attrs.evolve(evaluation, costs={"train_seconds": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.to_json()


def test_gains_are_differences():
    """Two of four with the sense, one without, none when shuffled."""
    rows = [row("a", "A.", base="a"), row("b", "b"), row("c", "a"), row("d", "no idea")]
    found = gain(rows, ["a", "a", "b", "c"], resamples=20, seed=0)
    assert found.accuracy.value == 0.5
    assert found.over_base.value == 0.25
    assert found.over_shuffled.value == 0.5
    assert found.chance.value == 0.25
    assert {name: estimate.value for name, estimate in found.per_class.items()} == {
        "a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0,
    }  # fmt: skip


def test_confusion_counts_every_answer():
    """An answer that is a class is counted there, any other as other."""
    rows = [row("a", "a"), row("a", "e"), row("b", "no idea"), row("b", "(other)")]
    found = gain(rows, ["a", "e"], resamples=5, seed=0).confusion
    assert found == {"a": {"a": 1, "e": 1}, "b": {OTHER: 2}}
