"""``safe data check`` says everything at once, and its exit code says whether it is bad."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from safe_framework.cli import main


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A data file of which the second row names no file that is there."""
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(4000) / 9), 8000)
    lines = [{"question": "q", "answer": "a", "audio": name} for name in ("a.wav", "gone.wav")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "rows.jsonl"


def test_a_fault_is_shown_with_its_row_and_its_fix(
    rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the table names file, row, kind and fix, then the counts; an error exits with 1."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["data", "check", str(rows)]) == 1
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "missing-file" in line]
    for part in ("rows.jsonl:2", "gone.wav", "correct its name"):
        assert part in line
    assert "a 2" in shown
    assert shown.endswith("1 errors, 0 warnings\n")


def test_warnings_exit_with_0(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: a warning is shown, and is no failure."""
    rows.write_text(rows.read_text().splitlines()[0])
    assert main(["data", "check", str(rows), "--rate", "16000"]) == 0
    assert "wrong-rate" in capsys.readouterr().out
    assert main(["data", "check", str(rows), "--longest", "0.1"]) == 0
    assert "too-long" in capsys.readouterr().out


def test_json_is_alone_on_standard_output(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: what is printed with ``--json`` is one JSON document, with the same exit code."""
    assert main(["data", "check", str(rows), "--json"]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert [finding["place"] for finding in report["findings"]] == ["rows.jsonl:2"]
    assert "checking train" in printed.err


def test_data_that_are_not_there_are_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: a file that does not exist is a finding, not a traceback."""
    assert main(["data", "check", str(tmp_path / "gone.csv")]) == 1
    assert "unreadable-data" in capsys.readouterr().out


def test_a_recipe_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Law: anything else is taken for a recipe, and the error says that it is none."""
    assert main(["data", "check", "nonsense"]) == 1
    assert "`nonsense` is neither a file nor a recipe" in capsys.readouterr().err
