"""What a finished run is asked afterwards: its gate, its attention, its report."""

import json
import shutil
from pathlib import Path

import pytest

from safe_framework.cli import main
from safe_framework.config.read import parse_recipe
from safe_framework.errors import DataError, SafeError
from safe_framework.evaluation.attention import read_attention
from safe_framework.evaluation.sweep import read_sweeps
from safe_framework.runs import inspection
from safe_framework.runs import run as runs
from safe_framework.runs.finished import RunFolder, open_run
from safe_framework.runs.run import run_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run; not to be changed."""
    return run_recipe(
        str(world / "recipe.toml"), output=tmp_path_factory.mktemp("runs") / "asked", quiet=True
    )


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The whole run's folder, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_sweep_is_kept_with_the_run(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: ``safe sweep ADAPTER`` prints a gate to set, and writes sweep.json into the run."""
    assert main(["sweep", str(copied / "adapter"), "--gates", "0.5,1", "--budget", "0"]) == 0
    swept = read_sweeps(copied)["audio"]
    assert [point.gate for point in swept.points] == [0.0, 0.5, 1.0]
    assert swept.points[0].kept.agreement.value == 1.0
    assert swept.texts == 3
    printed = capsys.readouterr().out
    best = swept.recommended
    assert ("set_gate" in printed) == ("best" in printed) == (best is not None)
    assert "chosen on the test rows" in printed


SPLITS = [
    ("", "test", 4),
    ('\nvalidation = "train.jsonl"', "validation", 8),
    ("\n[monitor]\nheld_out = 0.3", "held out of train", 2),
]


@pytest.mark.parametrize(("more", "split", "count"), SPLITS)
def test_a_gate_is_chosen_on_rows_that_the_gain_is_not_told_of(
    world: Path, finished: Path, more: str, split: str, count: int
) -> None:
    """Law: the rows are `validation`'s, else those held out of training, else the test's."""
    text = (world / "recipe.toml").read_text("utf-8")
    data = '\nretention_test = "texts_test.jsonl"'
    assert data in text
    recipe = parse_recipe(
        text.replace(data, data + more) if "validation" in more else text + more, folder=world
    )
    run = RunFolder(finished, recipe, open_run(finished).evaluation)
    found, examples = inspection.rows_to_choose_on(run, "audio")
    assert found == split
    assert len(examples) == count


def test_the_sweep_agrees_with_the_run(copied: Path) -> None:
    """Law: at gate 1 the reopened adapter answers what the run answered, and at 0 what the base."""
    main(["sweep", str(copied), "--gates", "1", "--texts", "1"])
    swept, answers = read_sweeps(copied)["audio"], open_run(copied).evaluation.answers
    assert swept.points[-1].answers == tuple(row.answer for row in answers)
    assert swept.points[0].answers == tuple(row.base for row in answers)
    assert swept.places == tuple(row.place for row in answers)


@pytest.fixture(scope="module")
def reported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder after ``safe report``; not to be changed."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("reported") / "run"))
    assert main(["report", str(folder)]) == 0
    return folder


def test_a_report_measures_what_is_missing(finished: Path, reported: Path) -> None:
    """Law: ``safe report RUN`` writes a page with sweep, attention, sounds and curves."""
    before = (finished / "report.html").read_text().count("<svg")
    page = (reported / "report.html").read_text()
    attended = read_attention(reported)
    assert attended is not None
    assert page.count("<svg") == before + 2 + min(len(attended), 4)
    assert page.count("<audio") == 4
    assert "gate 0.5" in page


def test_a_second_report_measures_nothing(
    reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Law: what was measured is kept: the same page comes again without a question asked."""
    monkeypatch.setattr("safe_framework.runs.inspection.sweep", None)
    monkeypatch.setattr("safe_framework.runs.inspection.summarize_attention", None)
    assert main(["report", str(reported), "--output", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == (reported / "report.html").read_bytes()
    assert "again.html" in capsys.readouterr().out


def test_a_report_without_measuring_says_how_to(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: with --no-measure nothing but the page is written, and no base is loaded."""
    monkeypatch.setattr("safe_framework.runs.finished.load", None)
    main(["report", str(copied), "--no-measure"])
    page = (copied / "report.html").read_text()
    assert "safe sweep RUN" in page
    assert not (copied / "sweep.json").exists()


def test_a_certificate_is_shown(copied: Path) -> None:
    """Law: what ``safe verify`` wrote into the adapter's folder is in the page, law by law."""
    assert main(["verify", str(copied / "adapter"), "--quick"]) == 0
    main(["report", str(copied), "--no-measure"])
    page = (copied / "report.html").read_text()
    assert "Every law that applies holds." in page
    assert "what it demands" in page


def test_training_anew_forgets_what_was_measured(world: Path, copied: Path, reported: Path) -> None:
    """Law: after another run in the folder, no sweep of the older adapter is shown."""
    for name in ("sweep.json", "attention.json"):
        shutil.copy(reported / name, copied)
    assert read_sweeps(copied)
    run_recipe(str(world / "recipe.toml"), output=copied, quiet=True, resume=False)
    assert not read_sweeps(copied)
    assert read_attention(copied) is None


def test_a_run_knows_its_recipe_or_asks_for_it(world: Path, copied: Path) -> None:
    """Law: a run whose recipe moved is opened with its new path, and with no other recipe."""
    state = json.loads((copied / runs.STATE).read_text())
    (copied / runs.STATE).write_text(json.dumps({**state, "source": "gone.toml"}))
    with pytest.raises(DataError, match=r"no longer there\nhint: name it with --recipe"):
        open_run(copied)
    assert open_run(copied, str(world / "recipe.toml")).recipe.modalities.keys() == {"audio"}
    with pytest.raises(DataError, match="is not the recipe that"):
        open_run(copied, str(world / "every_method.toml"))


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    """Law: a folder without numbers is an error that says what it lacks."""
    with pytest.raises(DataError, match=r"holds no finished run: it has no `metrics\.json`"):
        open_run(tmp_path)


def test_unknown_modalities_and_numbers_are_refused(copied: Path) -> None:
    """Law: a modality that the recipe lacks is named, and metrics that cannot be read too."""
    with pytest.raises(SafeError, match=r"no modality `smell`\nhint: modalities: audio"):
        open_run(copied).modality_or_default("smell")
    (copied / "metrics.json").write_text("{}")
    with pytest.raises(DataError, match=r"metrics\.json` cannot be read"):
        open_run(copied)
