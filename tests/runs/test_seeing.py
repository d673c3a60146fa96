"""A whole run on a base that sees: pictures in every file of rows, and a sense of hearing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from safe_framework.cli import main
from safe_framework.errors import DataError
from safe_framework.evaluation.alignment import IMAGE_FEATURES
from safe_framework.pretrained import quietly
from safe_framework.runs.finished import RunFolder, open_run
from safe_framework.runs.inspection import report_on, sweep_gate
from safe_framework.runs.run import run_recipe
from tests.runs.conftest import RECIPE, write_rows, write_tones, write_whisper
from tests.support.seeing import llava, picture, save

COLOURS = ("red", "blue", "green", "black")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What a file of JSON lines holds."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def with_pictures(path: Path) -> None:
    """Give every second pair of rows pictures, and a question that needs both senses."""
    rows = rows_of(path)
    for number, row in enumerate(rows):
        row["kind"] = "both" if number // 2 % 2 else "hear"
        if row["kind"] == "both":
            row |= {"image": f"{COLOURS[number % 4]}.png", "question": "what is this sound"}
    write_rows(path, rows)


def picture_questions() -> list[dict[str, Any]]:
    """Questions about pictures; one with a sound, one with several answers, one about two."""
    rows: list[dict[str, Any]] = [
        {"question": "what is this", "answer": colour, "image": f"{colour}.png", "kind": "colour"}
        for colour in COLOURS
    ]
    rows[0]["audio"] = "test0.wav"
    rows[1]["answers"] = ["blue", "black", "blue"]
    two = {"images": ["red.png", "blue.png"], "question": "is this red", "answer": "no"}
    return [*rows, {**two, "kind": "two"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and everything that it names."""
    folder = tmp_path_factory.mktemp("seeing")
    with quietly():
        save(folder / "base", *llava())
    write_whisper(folder / "whisper")
    for name, count, lowest in (("train", 8, 200.0), ("test", 8, 230.0)):
        write_tones(folder, name, count, lowest)
        with_pictures(folder / f"{name}.jsonl")
    for colour in COLOURS:
        picture(colour).save(folder / f"{colour}.png")
    texts: list[dict[str, Any]] = [{"text": "the cat sat on a mat"}, {"text": "the dog ran"}]
    seen = [{"question": "what is this", "image": f"{colour}.png"} for colour in COLOURS]
    write_rows(folder / "texts.jsonl", [*texts, *seen])
    write_rows(folder / "texts_test.jsonl", [*texts, *picture_questions()])
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder), "utf-8")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The recipe, run whole."""
    output = tmp_path_factory.mktemp("runs") / "seen"
    run_recipe(str(folder / "recipe.toml"), output=output, quiet=True)
    return open_run(output)


def test_seeing_is_measured(run: RunFolder) -> None:
    """Law: ``metrics.json`` says what became of the seeing; absent, every bit is the base's."""
    seeing = run.evaluation.seeing
    assert seeing is not None
    assert seeing.identical
    assert run.evaluation.retention.absent.identical
    assert run.evaluation.gate_zero.identical
    assert [row.place for row in seeing.questions] == [
        f"texts_test.jsonl:{line}" for line in range(3, 8)
    ]
    assert seeing.questions[1].expected == ("blue", "black", "blue")
    assert [row.relevant is not None for row in seeing.questions] == [True] + [False] * 4
    assert set(seeing.kinds) == {"colour", "two"}
    assert set(seeing.scores.irrelevant) == {"silent", "noise", "shuffled"}


def test_questions_with_both_senses_are_measured(run: RunFolder) -> None:
    """Law: test rows with a picture and a sound are asked with each missing and each wrong."""
    found = run.evaluation
    assert found.both_senses is not None
    assert found.both_senses.scores.accuracy.n == 4
    assert {kind: one.score.n for kind, one in found.kinds.items()} == {"hear": 4, "both": 4}
    assert found.picture_alignment is not None
    assert found.picture_alignment.source == IMAGE_FEATURES
    assert found.picture_alignment.pictures == 3  # red belongs to a question about seeing


def test_the_report_shows_them(run: RunFolder) -> None:
    """Law: pictures and players are in the page, with the answers at three gates."""
    page = (run.folder / "report.html").read_text("utf-8")
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == 4 + 4 + 2
    assert page.count("<dt>gate 0.5</dt>") == 4
    assert "What it still sees" in page
    assert page.count("<audio") == 8 + 1


def test_a_finished_run_is_asked_again(run: RunFolder, tmp_path: Path) -> None:
    """Law: sweep and report of a run find its pictures, and the sweep keeps the base at gate 0."""
    found = sweep_gate(run, gates=(0, 0.5, 1))
    assert found.points[0].kept.agreement.value == 1.0
    assert found.texts == 7
    again = run.evaluation_with_samples()
    assert again.seeing is not None
    assert all(row.images for row in again.seeing.questions)
    page = report_on(run, output=tmp_path / "again.html", measure=False).read_text("utf-8")
    assert page.count("<img") == 4 + 4 + 2
    assert page.count("<dt>gate 0.5</dt>") == 4


def test_the_adapter_is_loaded_with_its_base(run: RunFolder) -> None:
    """Law: what was saved gives the answers that were measured."""
    from safe_framework.evaluation.answers import answer, eval_mode

    examples = run.examples("audio")
    with eval_mode(run.model):
        given = answer(run.model, examples, max_new_tokens=2, gate={"audio": 1.0})
    assert given == [row.answer for row in run.evaluation.answers]


def test_a_missing_sound_of_a_picture_is_said_before_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: ``safe check`` names a picture question whose own sample is not there."""
    gone = {"question": "what", "answer": "red", "image": "red.png", "audio": "gone.wav"}
    write_rows(folder / "gone.jsonl", [gone])
    text = (folder / "recipe.toml").read_text("utf-8")
    (folder / "gone.toml").write_text(text.replace("texts_test.jsonl", "gone.jsonl"), "utf-8")
    assert main(["check", str(folder / "gone.toml")]) == 1
    assert "gone.jsonl:1: `audio`: there is no file" in capsys.readouterr().out


def test_runs_on_pictures_are_compared(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: ``safe compare`` has rows for what was seen."""
    assert main(["compare", str(run.folder)]) == 0
    assert "VQA accuracy" in capsys.readouterr().out


def test_a_field_that_no_row_has_stops_before_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: ``by`` that names nothing is refused before anything is trained."""
    right = (folder / "recipe.toml").read_text("utf-8")
    wrong = right.replace("[data]", '[data]\nignore = ["kind"]') + 'by = "sort"\n'
    (folder / "wrong.toml").write_text(wrong, "utf-8")
    assert main(["check", str(folder / "wrong.toml")]) == 1
    assert "has the field `sort`" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(DataError, match="has the field `sort`"):
        run_recipe(str(folder / "wrong.toml"), output=tmp_path / "wrong", quiet=True)
    assert not (tmp_path / "wrong" / "checkpoints").exists()
