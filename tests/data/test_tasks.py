"""Rows of captions, questions and classes."""

from pathlib import Path

import pytest

from safe_framework.config.read import parse_recipe
from safe_framework.data.examples import read_task
from safe_framework.data.readers import Row
from safe_framework.data.recipe_data import RecipeData
from safe_framework.data.tasks import CAPTIONS, CLASSES, TaskFormat
from safe_framework.errors import DataError

SMALLEST = """
[base]
model = "some/model"

[modalities.touch]
encoder = { use = "sensor", channels = 2, rate = 50 }
projector = { use = "standard" }
fusion = { use = "lora", layers = [0] }

"""


def row(**values: object) -> Row:
    """A row of a file."""
    return Row("t.jsonl:3", Path(), values)


@pytest.mark.parametrize(
    ("reading", "values", "expected"),
    [
        (TaskFormat(), {"question": "what", "answer": "x"}, ("what", "x")),
        (TaskFormat(task=CAPTIONS), {"caption": "a cat"}, ("", "a cat")),
        (TaskFormat(task=CAPTIONS), {"answer": "a cat"}, ("", "a cat")),
        (TaskFormat(task=CAPTIONS, prompt="Say:"), {"caption": "a cat"}, ("Say:", "a cat")),
        (TaskFormat(task=CAPTIONS, question="Say"), {"caption": "a"}, ("Say", "a")),
        (
            TaskFormat(task=CAPTIONS, prompt="Q {question}", question="Say"),
            {"caption": "a", "question": "Tell"},
            ("Q Tell", "a"),
        ),
        (TaskFormat(task=CLASSES, labels=("x", "y")), {"label": "x"}, ("", "x")),
        (TaskFormat(task=CLASSES), {"answer": "z", "question": "which"}, ("which", "z")),
    ],
)
def test_a_row_gives_its_prompt_and_answer(
    reading: TaskFormat, values: dict[str, object], expected: tuple[str, str]
) -> None:
    """Law: each task takes its own field, else ``answer``, and only questions must ask."""
    given = row(**values)
    assert (reading.prompt_of(given), reading.answer_of(given)) == expected


@pytest.mark.parametrize(
    ("reading", "values", "message"),
    [
        (TaskFormat(), {"answer": "x"}, "t.jsonl:3: `question` must be a text"),
        (TaskFormat(task=CAPTIONS), {"text": "x"}, "t.jsonl:3: `caption` must be a text"),
        (TaskFormat(task=CLASSES), {"label": " "}, "t.jsonl:3: `label` must be a text"),
        (
            TaskFormat(task=CLASSES, labels=("x", "y")),
            {"label": "z"},
            r"3: `z` is none of the labels",
        ),
    ],
)
def test_a_row_that_lacks_its_part_is_named(
    reading: TaskFormat, values: dict[str, object], message: str
) -> None:
    """Law: a missing question, caption or label, or one outside the set, is named with its line."""
    with pytest.raises(DataError, match=message):
        read_task_row(reading, row(**values))


def read_task_row(reading: TaskFormat, given: Row) -> None:
    """Everything that is read of a row."""
    reading.prompt_of(given)
    reading.answer_of(given)


@pytest.fixture
def recipe_data(tmp_path: Path) -> RecipeData:
    """A mix of captions and of classes whose labels nobody wrote down."""
    (tmp_path / "captions.jsonl").write_text('{"caption": "a cat"}\n{"caption": "a dog"}\n')
    (tmp_path / "named.jsonl").write_text('{"label": "x"}\n{"label": "y"}\n{"label": "x"}\n')
    (tmp_path / "test.jsonl").write_text('{"label": "y"}\n')
    (tmp_path / "wrong.jsonl").write_text('{"label": "y"}\n{"label": "z"}\n')
    text = SMALLEST + (
        '[data]\n[[data.mix]]\ntrain = "captions.jsonl"\ntask = "captioning"\nweight = 2\n'
        '[[data.mix]]\ntrain = "named.jsonl"\ntest = "test.jsonl"\ntask = "classification"\n'
    )
    return RecipeData(parse_recipe(text, folder=tmp_path))


def test_datasets_are_read_in_turn_and_keep_their_names(recipe_data: RecipeData) -> None:
    """Law: the rows of a mix come dataset by dataset, each with its name, task and weight."""
    rows = recipe_data.examples("train", {})
    assert [(e.dataset, e.task, e.answer) for e in rows] == [
        ("captions", CAPTIONS, "a cat"), ("captions", CAPTIONS, "a dog"),
        ("named", CLASSES, "x"), ("named", CLASSES, "y"), ("named", CLASSES, "x"),
    ]  # fmt: skip
    assert recipe_data.weights == {"captions": 2.0, "named": 1.0}
    assert recipe_data.trained_on() == ["train of captions", "train of named"]


def test_labels_that_nobody_wrote_are_those_of_training(recipe_data: RecipeData) -> None:
    """Law: without ``labels`` the closed set is that of the training rows, in the test too."""
    train, test = (recipe_data.examples(key, {}) for key in ("train", "test"))
    assert {e.labels for e in train if e.task == CLASSES} == {("x", "y")}
    assert [e.labels for e in test] == [("x", "y")]


def test_a_test_row_outside_the_set_is_refused(tmp_path: Path, recipe_data: RecipeData) -> None:
    """Law: an answer that the closed set lacks stops the run at its row."""
    reading = recipe_data.reading("named", ("x", "y"))
    with pytest.raises(DataError, match=r"wrong\.jsonl:2: `z` is none of the labels\nhint: .*x, y"):
        read_task(tmp_path / "wrong.jsonl", {}, reading)
