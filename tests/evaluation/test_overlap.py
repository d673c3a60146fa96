"""Test rows that were trained on are found by what they hold, and told of before every number."""

import attrs
import numpy as np
from PIL import Image

from safe_framework.data.audio import Waveform
from safe_framework.data.examples import Example
from safe_framework.data.pictures import Picture
from safe_framework.evaluation.overlap import TrainedOn, trained_on
from safe_framework.evaluation.results import Evaluation
from safe_framework.evaluation.summary import sections


def row(place, sample, *pictures):
    """A row of a place with a sample and pictures; its question and answer differ from others'."""
    return Example(place, place, {"audio": sample}, place, images=pictures)


def wave(seed, rate=16_000):
    """A sound of its own."""
    return Waveform(np.random.default_rng(seed).normal(size=100).astype("f4"), rate)


def test_the_same_content_is_found_whatever_is_asked():
    """Equal arrays are the same sample, whatever file, question or answer; others are not."""
    train = [row("a", wave(0)), row("b", wave(0)), row("c", wave(1))]
    test = [row("x", wave(0)), row("y", wave(2)), row("z", wave(1)), row("r", wave(1, 8_000))]
    assert trained_on("audio", train, test) == (TrainedOn("x", "a"), TrainedOn("z", "c"))
    assert trained_on("audio", train, test[1:2]) == ()
    arrays = [row("a", np.zeros(3)), row("b", np.zeros((1, 3)))]
    assert trained_on("audio", arrays, [row("x", np.zeros(3))]) == (TrainedOn("x", "a"),)


def test_pictures_belong_to_what_is_asked_about():
    """The same sound beside another picture is another row; beside the same one it is none."""
    red, blue = (Picture(Image.new("RGB", (4, 4), colour)) for colour in ("red", "blue"))
    again = Picture(Image.new("RGB", (4, 4), "red"))
    train = [row("a", wave(0), red)]
    test = [row("x", wave(0), blue), row("y", wave(0), again), row("z", wave(0))]
    assert trained_on("audio", train, test) == (TrainedOn("y", "a"),)


def test_what_holds_no_array_is_not_compared():
    """Samples that only their encoder understands are never called the same."""
    assert trained_on("audio", [row("a", "words")], [row("x", "words")]) == ()


def test_it_is_told_first(evaluation):
    """The first section of table and report says how many there are and names one; else nothing."""
    assert sections(evaluation)[0].title == "Gain"
    told = attrs.evolve(evaluation, trained_on=(TrainedOn("test.jsonl:1", "train.jsonl:7"),))
    first = sections(told)[0]
    assert first.title.startswith("NOT HELD OUT")
    assert first.rows[0].value == f"1 of {len(evaluation.answers)}"
    assert "test.jsonl:1, which holds what train.jsonl:7 holds" in first.rows[0].note
    assert first.rows[0].met is False
    assert Evaluation.from_json(told.to_json()).trained_on == told.trained_on
    assert "trained_on" not in evaluation.to_json()
