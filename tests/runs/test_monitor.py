"""A run that is made to forget is caught, rolled back, drawn, and leaves adapters to pick from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import safe_framework
from safe_framework.cli import main
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import DataError
from safe_framework.runs.run import run_recipe
from safe_framework.training.monitor.event_log import read_events
from tests.runs.monitored import MONITORED, write_recipe

pytestmark = pytest.mark.slow

TOLERANCE = 0.05


@pytest.fixture(scope="module")
def forgetful(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with retention weight 0 and a high rate; not to be changed."""
    rate = "5e-3"
    recipe = write_recipe(
        world, "forgetful", MONITORED.replace("patience = 0", "patience = 5"),
        weight="0.0", projector_learning_rate=rate, fusion_learning_rate=rate,
        max_steps="40", warmup_steps="0", align_weight="0.0", save_steps="20",
    )  # fmt: skip
    return run_recipe(recipe, output=tmp_path_factory.mktemp("runs") / "forgetful", quiet=True)


def of(run: Path, kind: str) -> list[Mapping[str, Any]]:
    """The events of one kind."""
    return [event for event in read_events(run / "monitor.jsonl") if event["event"] == kind]


def test_forgetting_is_caught_and_rolled_back(forgetful: Path) -> None:
    """Law: what lost the base's answers for certain is given up, and the rates fall."""
    lost = [e["step"] for e in of(forgetful, "evaluation") if e["change"]["high"] < -TOLERANCE]
    rollbacks = of(forgetful, "rollback")
    assert lost
    assert [event["step"] for event in rollbacks] == lost
    rates = [0.3**n for n in range(1, len(lost) + 1)]
    assert [event["rate"] for event in rollbacks] == pytest.approx(rates)
    kept = {e["step"] for e in of(forgetful, "evaluation") if e["keeps"]}
    assert {event["to"] for event in rollbacks} <= kept


def test_the_final_adapter_keeps_retention(forgetful: Path) -> None:
    """Law: the run's adapter is that of a measurement within the tolerance, bit for bit."""
    (best,) = of(forgetful, "best")
    (reading,) = [e for e in of(forgetful, "evaluation") if e["step"] == best["chosen"]]
    assert reading["retention"]["value"] >= 1 - TOLERANCE
    step = forgetful / "pareto" / f"step-{best['chosen']}"
    name = "adapter_model.safetensors"
    assert (step / name).read_bytes() == (forgetful / "adapter" / name).read_bytes()
    metrics = json.loads((forgetful / "metrics.json").read_text())
    assert metrics["retention"]["overall"]["agreement"]["value"] >= 1 - TOLERANCE


def test_it_stops_without_better_gain(forgetful: Path) -> None:
    """Law: after `patience` measurements without better gain, no further step is taken."""
    (stop,) = of(forgetful, "stop")
    assert stop["step"] == of(forgetful, "evaluation")[-1]["step"] == 10
    assert "no better gain in 5 measurements" in stop["said"]


def test_a_stopped_run_can_be_called_again(forgetful: Path, world: Path) -> None:
    """Law: the same command on a run that was stopped trains nothing more and ends the same."""
    files = [forgetful / "adapter/adapter_model.safetensors", forgetful / "monitor.jsonl"]
    before = [path.read_bytes() for path in files]
    run_recipe(str(world / "forgetful.toml"), output=forgetful, quiet=True)
    assert [path.read_bytes() for path in files] == before


def test_the_plot_marks_every_rollback(forgetful: Path) -> None:
    """Law: the report and a file of its own show the measurements, and name each rollback."""
    page, drawing = (forgetful / "report.html").read_text(), (forgetful / "monitor.svg").read_text()
    steps = ", ".join(str(event["step"]) for event in of(forgetful, "rollback"))
    assert f"Rolled back at step {steps}." in page
    assert drawing.startswith("<?xml")
    assert "next tokens kept" in drawing
    assert "next tokens kept" in page


def test_what_is_kept_loads(forgetful: Path) -> None:
    """Law: each adapter of the Pareto set loads, and there is a folder for each, and no other."""
    held = json.loads((forgetful / "pareto" / "pareto.json").read_text())
    folders = {one["folder"] for one in held["members"]}
    assert folders == {path.name for path in (forgetful / "pareto").iterdir() if path.is_dir()}
    for folder in folders:
        assert safe_framework.load(forgetful / "pareto" / folder).gates == {"audio": 1.0}


def test_pick_exports_the_one_that_was_asked_for(
    forgetful: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: `safe pick` shows the set, and copies the adapter of most gain with that retention."""
    held = json.loads((forgetful / "pareto" / "pareto.json").read_text())
    output = tmp_path / "picked"
    wish = ["--retention", "0.2", "--output", str(output)]
    assert main(["pick", str(forgetful), *wish]) == 0
    wanted = max(
        (one for one in held["members"] if one["retention"]["value"] >= 0.2),
        key=lambda one: (one["gain"]["value"], one["retention"]["value"]),
    )
    source = forgetful / "pareto" / wanted["folder"] / "adapter_model.safetensors"
    assert (output / "adapter_model.safetensors").read_bytes() == source.read_bytes()
    assert safe_framework.load(output).gates == {"audio": 1.0}
    shown = capsys.readouterr().out
    assert all(str(one["step"]) in shown for one in held["members"])


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (["--step", "7"], "there is no adapter of step 7"),
        (["--gain", "0.99"], "there is no adapter that kept 0 % and gained 99.0 %"),
        (["--step", "0", "--gain", "0.5"], "a step says which adapter it is"),
    ],
)
def test_pick_says_what_there_is_not(
    forgetful: Path, wish: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: a wish that no adapter meets is an error that names it."""
    assert main(["pick", str(forgetful), *wish]) == 1
    assert said in capsys.readouterr().err


def test_pick_needs_a_monitored_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: a folder without a Pareto set is refused with the reason."""
    assert main(["pick", str(tmp_path)]) == 1
    assert "holds no adapters to pick from" in capsys.readouterr().err


def test_a_monitor_needs_texts(world: Path, tmp_path: Path) -> None:
    """Law: without texts of any kind a monitor is refused, and says what to add."""
    text = Path(write_recipe(world, "textless", MONITORED)).read_text()
    without = text.replace('retention_validation = "sentences.jsonl"', "")
    without = without.replace('retention = "texts.jsonl"', "")
    without = without[: without.index("[[retention]]")] + without[without.index("[data]") :]
    (world / "textless.toml").write_text(without)
    with pytest.raises(DataError, match="needs text of the base's own domain"):
        run_recipe(str(world / "textless.toml"), output=tmp_path / "run", quiet=True)


def test_foreign_samples_are_measured_beside(world: Path, tmp_path: Path) -> None:
    """Law: a run reads `foreign_validation`, and its identity depends on what the file holds."""
    path = Path(write_recipe(world, "strange", MONITORED, max_steps="2"))
    named = '[data]\nforeign_validation = "foreign_test.jsonl"'
    path.write_text(path.read_text().replace("[data]", named))
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        original = RecipeData.samples
        patch.setattr(RecipeData, "samples", lambda *args: asked.append(args[1]) or original(*args))
        folder = run_recipe(str(path), output=tmp_path / "run", quiet=True)
    assert "foreign_validation" in asked
    assert "foreign_validation" in json.loads((folder / "run.json").read_text())["data"]
