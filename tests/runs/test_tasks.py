"""Runs of several datasets, each with a task of its own."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

import safe_framework
from safe_framework.data.checks.recipe import check_target
from safe_framework.errors import DataError
from safe_framework.runs.run import run_recipe
from tests.runs.broken import broken_off
from tests.runs.conftest import write_rows

pytestmark = pytest.mark.slow

MIX = """[data]
retention = "texts.jsonl"
retention_test = "texts_test.jsonl"

[[data.mix]]
train = "captions.jsonl"
test = "captions.jsonl"
task = "captioning"

[[data.mix]]
name = "asked"
train = "train.jsonl"
test = "test.jsonl"
weight = 2

[[data.mix]]
name = "heights"
train = "heights.jsonl"
test = "heights.jsonl"
task = "classification"
prompt = "what"
labels = ["high", "low"]
read_at = "tokens"

[training]
balance = true
"""


@pytest.fixture(scope="module")
def recipe(world: Path) -> Path:
    """A recipe of captions without any prompt, questions, and classes read at the tokens."""
    sounds = [f"train{number}.wav" for number in range(4)]
    captions = [
        {"caption": f"a {'cat' if n % 2 else 'dog'} sat", "audio": s} for n, s in enumerate(sounds)
    ]
    write_rows(world / "captions.jsonl", [*captions, {"caption": "the mat"}])
    heights = [{"label": "high" if n % 2 else "low", "audio": s} for n, s in enumerate(sounds)]
    write_rows(world / "heights.jsonl", [*heights, {"label": "low"}])
    text = (world / "recipe.toml").read_text().replace("balance = true\n", "")
    text = text.replace("max_new_tokens = 2", "max_new_tokens = 4")  # a caption has 3
    start, end = text.index("[data]"), text.index("[training]\n")
    whole = text[:start] + MIX + text[end + len("[training]\n") :]
    (world / "mix.toml").write_text(whole.replace("gate =", "inline = true\ngate ="))
    return world / "mix.toml"


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run; not to be changed."""
    return run_recipe(str(recipe), output=tmp_path_factory.mktemp("mixed") / "run", quiet=True)


def metrics(folder: Path) -> Mapping[str, object]:
    """What the run measured."""
    found: Mapping[str, object] = json.loads((folder / "metrics.json").read_text())
    return found


def test_each_dataset_is_reported_by_its_own_measure(finished: Path) -> None:
    """Law: a mix is measured dataset by dataset, captions by their words."""
    found = metrics(finished)["datasets"]
    assert {
        name: (one["task"], one["measure"], one["score"]["n"]) for name, one in found.items()
    } == {
        "captions": ("captioning", "words in common (F1)", 4),
        "asked": ("question_answering", "exact match", 4),
        "heights": ("classification", "exact match", 4),
    }


def test_captions_are_neither_right_nor_wrong(finished: Path) -> None:
    """Law: the gain over all counts the rows whose answers are right or wrong."""
    found = metrics(finished)
    assert found["gain"]["accuracy"]["n"] == 8
    assert len(found["answers"]) == 12
    assert "Gain by dataset" in (finished / "report.html").read_text()


def test_a_classification_answers_with_a_label(finished: Path) -> None:
    """Law: every answer to a row of a closed set is one of the set, with and without the sense."""
    rows = [row for row in metrics(finished)["answers"] if row["dataset"] == "heights"]
    given = [row[key] for row in rows for key in ("answer", "base", "shuffled")]
    assert given
    assert set(given) <= {"high", "low"}


def test_a_mix_resumes_to_the_same_weights(recipe: Path, finished: Path, tmp_path: Path) -> None:
    """Law: a mixed run that is broken off and resumed ends at bitwise the same adapter."""
    broken_off(recipe, tmp_path / "run", loss=6)
    run_recipe(str(recipe), output=tmp_path / "run", quiet=True)
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (finished / weights).read_bytes()


def test_a_changed_dataset_of_a_mix_is_noticed(recipe: Path, finished: Path) -> None:
    """Law: no run goes on when any dataset of its mix has changed."""
    path = recipe.with_name("captions.jsonl")
    before = path.read_text()
    path.write_text(before + '{"caption": "the dog ran"}\n')
    try:
        with pytest.raises(DataError, match="other training data"):
            run_recipe(str(recipe), output=finished, quiet=True)
    finally:
        path.write_text(before)


def test_the_check_knows_a_mix(recipe: Path) -> None:
    """Law: the check reads every dataset by its own task, and shared training clips are no leak."""
    report = check_target(str(recipe), longest=30)
    assert set(report.counts) == {
        f"{key} of {name}" for key in ("train", "test") for name in ("captions", "asked", "heights")
    } | {"retention", "retention_test"}
    leaks = [
        found
        for found in report.findings
        if found.kind == "leak" and found.data.startswith("train")
    ]
    assert leaks == []
    assert {found.kind for found in report.findings} == {"leak", "no-sample"}


def test_the_check_sees_the_task_of_a_file(recipe: Path) -> None:
    """Law: a file of captions or of labels is checked as one where no recipe says what it is."""
    for name in ("captions", "heights"):
        report = check_target(str(recipe.with_name(f"{name}.jsonl")), longest=30)
        assert [found.kind for found in report.findings] == ["no-sample"]


def test_a_model_is_built_without_any_data_of_the_mix(recipe: Path) -> None:
    """Law: a recipe with a mix builds as one with a single dataset does."""
    assert safe_framework.build(recipe).processor.template == "{question}"
