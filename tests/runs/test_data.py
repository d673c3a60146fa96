"""What a run does with rows that lack a sense, rows that cannot be used, and other files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from safe_framework.data.checks.recipe import check_target
from safe_framework.errors import DataError
from safe_framework.runs import run
from safe_framework.runs.run import run_recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """The world's data and recipe, to be changed."""
    for path in world.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path


def change(folder: Path, old: str, new: str) -> None:
    """Replace some text of the recipe."""
    recipe = folder / "recipe.toml"
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))


def add(folder: Path, name: str, *rows: object) -> None:
    """Append rows to a JSONL file; a text is written as it is."""
    with (folder / name).open("a") as file:
        file.writelines(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows)


def test_rows_without_the_sense_are_trained_on_and_not_measured(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: a row may lack its sense in any split; the run ends, and says what it left out."""
    bare = {"question": "what is this", "answer": "low"}
    add(copy, "train.jsonl", bare, {**bare, "audio": None})
    add(copy, "test.jsonl", bare)
    run_recipe(str(copy / "recipe.toml"), output=copy / "run")
    shown = capsys.readouterr().out
    assert "2 rows of `train` have no `audio`: not evaluated" in shown
    assert "1 rows of `test` have no `audio`: not evaluated" in shown
    assert (copy / "run/adapter/adapter_model.safetensors").is_file()
    assert not (copy / "run/skipped_rows.jsonl").exists()


@pytest.mark.parametrize("name", ["train", "test", "texts", "texts_test"])
def test_a_bad_row_stops_the_run_before_it_trains(
    copy: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a row that cannot be used is named with its number, in whichever file; nothing runs."""
    monkeypatch.setattr(run, "train", None)
    add(copy, f"{name}.jsonl", "{")
    number = len((copy / f"{name}.jsonl").read_text().splitlines())
    with pytest.raises(DataError, match=rf"^{name}\.jsonl:{number}:"):
        run_recipe(str(copy / "recipe.toml"), output=copy / "run", quiet=True)


def test_bad_rows_are_skipped_counted_and_listed(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: told so, a run goes on without the rows that it cannot use, and lists each of them.

    That holds for what the encoder would refuse, too; the rest trains as if they were not there.
    """
    plain = copy / "plain.toml"
    plain.write_text((copy / "recipe.toml").read_text())
    run_recipe(str(plain), output=copy / "plain", quiet=True)
    change(copy, "[data]\n", '[data]\non_bad_row = "skip"\n')
    soundfile.write(copy / "nan.wav", np.full(800, np.nan), 16000, subtype="FLOAT")
    good = {"question": "what is this", "answer": "low"}
    add(copy, "train.jsonl", {**good, "audio": "gone.wav"}, {**good, "audio": "nan.wav"})
    add(copy, "texts.jsonl", {"title": "no text"})
    run_recipe(str(copy / "recipe.toml"), output=copy / "run")
    shown = capsys.readouterr().out
    assert "left out 1 of `retention`, 2 of `train`" in shown
    assert "train.jsonl:9: the sound file" in shown
    listed = [
        json.loads(line) for line in (copy / "run/skipped_rows.jsonl").read_text().splitlines()
    ]
    assert [(row["data"], row["problem"].split(": ")[0]) for row in listed] == [
        ("retention", "texts.jsonl:5"), ("train", "train.jsonl:9"), ("train", "train.jsonl:10"),
    ]  # fmt: skip
    adapters = [copy / f"{name}/adapter/adapter_model.safetensors" for name in ("plain", "run")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_the_kind_of_file_does_not_change_what_is_learned(copy: Path) -> None:
    """Law: the same rows in Parquet and CSV train the same weights, bit for bit, as in JSONL."""
    import pyarrow
    import pyarrow.parquet

    run_recipe(str(copy / "recipe.toml"), output=copy / "plain", quiet=True)
    rows = [json.loads(line) for line in (copy / "train.jsonl").read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), copy / "train.parquet")
    texts = [json.loads(line)["text"] for line in (copy / "texts.jsonl").read_text().splitlines()]
    (copy / "texts.csv").write_text("\n".join(["text", *texts]) + "\n")
    change(copy, 'train = "train.jsonl"', 'train = "train.parquet"')
    change(copy, '"texts.jsonl"', '"texts.csv"')
    run_recipe(str(copy / "recipe.toml"), output=copy / "run", quiet=True)
    adapters = [copy / f"{name}/adapter/adapter_model.safetensors" for name in ("plain", "run")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_folder_that_changed_is_other_training_data(copy: Path) -> None:
    """Law: a run on a folder is not resumed once a file in it has another content."""
    for number in range(4):
        place = copy / "clips" / ("high" if number % 2 else "low")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(copy / f"train{number}.wav", place)
    change(copy, 'train = "train.jsonl"', 'train = "clips"\nquestion = "what is this"')
    run_recipe(str(copy / "recipe.toml"), output=copy / "run", quiet=True)
    shutil.copy(copy / "train2.wav", copy / "clips/low/train0.wav")
    with pytest.raises(DataError, match="holds a run of other training data"):
        run_recipe(str(copy / "recipe.toml"), output=copy / "run", quiet=True)


def test_a_recipes_data_are_checked_against_its_encoders(copy: Path) -> None:
    """Law: the check builds a recipe's encoders alone, and finds what they would refuse."""
    soundfile.write(copy / "long.wav", 0.1 * np.sin(np.arange(2 * 16000) / 9), 16000)
    add(copy, "train.jsonl", {"question": "what", "answer": "low", "audio": "long.wav"})
    report = check_target(str(copy / "recipe.toml"), longest=30)
    wrong = [(found.data, found.place, found.kind) for found in report.findings]
    assert ("train", "train.jsonl:9", "refused") in wrong
    assert {kind for _, _, kind in wrong} == {"refused", "leak"}  # the texts of the test are known
