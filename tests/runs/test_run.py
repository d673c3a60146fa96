"""One run from recipe to report, on a tiny random base."""

import io
import json
import logging
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import safe_framework
from safe_framework.cli import main
from safe_framework.errors import DataError
from safe_framework.runs import run
from safe_framework.runs.finished import read_metrics
from safe_framework.runs.run import Clock, run_recipe
from safe_framework.training import objective, trainer
from safe_framework.utils.hashing import fingerprint
from safe_framework.utils.progress import WorkProgress
from safe_framework.utils.run_folder import adapter_in, recipe_of, run_of
from safe_framework.verification.certificate import FORMAT, Certificate
from safe_framework.verification.target import open_target


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run; not to be changed."""
    return run_recipe(
        str(world / "recipe.toml"), output=tmp_path_factory.mktemp("runs") / "whole", quiet=True
    )


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The whole run's folder, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def recipe_with(world: Path, name: str, changes: Mapping[str, str]) -> str:
    """The world's recipe with some of its text replaced, in a file of its own."""
    text = (world / "recipe.toml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (world / f"{name}.toml").write_text(text)
    return str(world / f"{name}.toml")


def weights(folder: Path) -> bytes:
    """The adapter of a run."""
    return (folder / "adapter/adapter_model.safetensors").read_bytes()


def test_a_run_writes_adapter_metrics_and_report(finished: Path) -> None:
    """Law: a finished run's folder holds the adapter, the numbers, the page and checkpoints."""
    assert {path.name for path in finished.iterdir()} == {
        "adapter",
        "checkpoints",
        "curves.json",
        "metrics.json",
        "report.html",
        "run.json",
    }
    assert (finished / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("cross_attention", "layers = [0, 1], nothing = true"),
        ("gated", "layers = [0, 0.5], gate_size = 8"),
        ("lora", "layers = [0.5], rank = 2, dora = true, rslora = true"),
        ("multilayer", "every = 1, shared = true"),
        ("tanh_gated", "expansion = 2"),
    ],
)
def test_every_fusion_adapter_runs(world: Path, tmp_path: Path, use: str, options: str) -> None:
    """Law: a recipe with any shipped adapter trains it, keeps off exact, and loads what it learned.

    Training moves every parameter that is saved, so a start that can never learn would be seen.
    """
    fusion = 'use = "lora", rank = 2, layers = [0, 1], dropout = 0.1'
    recipe = recipe_with(world, f"with_{use}", {fusion: f'use = "{use}", {options}'})
    folder = run_recipe(recipe, output=tmp_path / "run", quiet=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["retention"]["absent"]["identical"] is True
    fresh = safe_framework.build(recipe).trainable_parameters()
    learned = safe_framework.load(folder / "adapter").trainable_parameters()
    assert fresh.keys() == learned.keys()
    still = [name for name in fresh if torch.equal(fresh[name], learned[name])]
    assert still == ["audio.segments.weight"]  # of second samples: there is none


def test_metrics_count_what_was_measured(finished: Path) -> None:
    """Law: metrics.json says how many examples there were, what it cost, and that off is off.

    Nothing is said of what was not done, such as to fit a head.
    """
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["train_examples"] == 8
    assert metrics["retention"]["absent"]["identical"] is True
    size = sum(file.stat().st_size for file in (finished / "adapter").iterdir())
    assert metrics["costs"]["adapter_bytes"] == size
    assert metrics["costs"]["train_seconds"] > 0
    assert "relevance_seconds" not in metrics["costs"]


def test_the_adapter_loads_with_its_gate_open(finished: Path) -> None:
    """Law: the adapter loads on its base, and its gate is the recipe's final value."""
    assert safe_framework.load(finished / "adapter").gates == {"audio": 1.0}


def test_the_base_is_the_same_after_training(world: Path, finished: Path) -> None:
    """Law: the adapter was made for the very weights that the base still has on disk."""
    fresh = safe_framework.build(world / "recipe.toml")
    config = json.loads((finished / "adapter/adapter_config.json").read_text())
    assert config["base"]["weights"] == fingerprint(fresh.base)


def test_training_changed_the_adapter(world: Path, finished: Path) -> None:
    """Law: every trainable tensor of the saved adapter differs from a fresh one's."""
    fresh = safe_framework.build(world / "recipe.toml").trainable_parameters()
    trained = load_file(finished / "adapter/adapter_model.safetensors")
    assert fresh.keys() - trained.keys() == {"audio.segments.weight"}  # no row has two samples
    assert not [name for name in fresh.keys() & trained.keys() if fresh[name].equal(trained[name])]


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(
    world: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a second call takes no step, writes the same adapter, and keeps what was measured."""
    before = weights(copied)
    write_certificate(copied)
    main(["sweep", str(copied), "--gates", "1", "--texts", "1"])
    names = ("sweep.json", "adapter/certificate.json")
    measured = [(copied / name).read_bytes() for name in names]
    monkeypatch.setattr(objective.ForwardPlanner, "predictions", None)  # a step would call it
    assert main(["run", str(copied), "--quiet"]) == 0  # by the run's folder
    assert weights(copied) == before
    assert [(copied / name).read_bytes() for name in names] == measured
    assert "no certificate" not in (copied / "report.html").read_text("utf-8")


def write_certificate(run: Path) -> None:
    """Put a certificate that says nothing into a run's adapter."""
    nothing: Any = {"versions": {}, "base": {}, "modalities": {}, "laws": (), "comparisons": ()}
    Certificate(
        format=FORMAT, made="2030-01-01", device="cpu", dtype="float32", attention="sdpa",
        calls="quick", inputs="made up", seconds=1.0, **nothing,
    ).write(run / "adapter" / "certificate.json")  # fmt: skip


def test_a_certificate_goes_with_the_weights(finished: Path, tmp_path: Path) -> None:
    """Law: saving the same adapter keeps its certificate, saving another one removes it."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    write_certificate(run)
    model, path = safe_framework.load(run), run / "adapter" / "certificate.json"
    model.save_pretrained(run / "adapter")
    assert path.is_file()
    with torch.no_grad():
        next(iter(model.trainable_parameters().values())).add_(1.0)
    model.save_pretrained(run / "adapter")
    assert not path.is_file()


def test_other_results_are_seen(finished: Path) -> None:
    """Law: what was measured stays only where every answer and number is as before."""
    old = read_metrics(finished)
    assert run._measures_as_before(finished, attrs.evolve(old, costs={"train_seconds": 9.0}))
    assert not run._measures_as_before(finished, attrs.evolve(old, train_examples=3))
    assert not run._measures_as_before(finished / "adapter", old)


@pytest.mark.slow
def test_a_finished_run_is_measured_again_without_what_training_reads(
    world: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a run whose last step was taken computes nothing for steps, and ends the same."""
    before, read = weights(copied), []
    monkeypatch.setattr(trainer.SafeTrainer, "precompute", lambda *_: read.append(1))
    run_recipe(str(world / "recipe.toml"), output=copied, quiet=True)
    assert (read, weights(copied)) == ([], before)


@pytest.mark.slow
def test_starting_anew_takes_every_step_again(
    world: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: with resume off, all steps are taken, to the same weights since the seed is the same."""
    before, steps = weights(copied), []
    original = objective.ForwardPlanner.predictions
    monkeypatch.setattr(
        objective.ForwardPlanner, "predictions", lambda *args: steps.append(1) or original(*args)
    )
    run_recipe(str(world / "recipe.toml"), output=copied, resume=False, quiet=True)
    assert (len(steps), weights(copied)) == (9, before)


@pytest.mark.slow
def test_starting_anew_forgets_the_old_checkpoints(world: Path, copied: Path) -> None:
    """Law: a run that starts anew and is broken off never resumes from the older run."""
    short = recipe_with(world, "short", {"max_steps = 9": "max_steps = 3"})
    run_recipe(short, output=copied, resume=False, quiet=True)
    assert {path.name for path in (copied / "checkpoints").iterdir()} == {
        "checkpoint-2",
        "checkpoint-3",
    }


def test_old_checkpoints_that_are_half_removed_are_never_resumed_from(
    world: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a run that starts anew and dies while it removes the old checkpoints leaves none."""

    def dying(path: Path, **options: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(run.shutil, "rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(str(world / "recipe.toml"), output=copied, resume=False, quiet=True)
    assert not (copied / "checkpoints").exists()
    monkeypatch.undo()
    run._remove_checkpoints(copied / "checkpoints")
    assert not list(copied.glob(".checkpoints*"))


def test_another_recipes_folder_is_refused(world: Path, copied: Path) -> None:
    """Law: a folder that holds another recipe's run is left alone, and the hint says what to do."""
    other = recipe_with(world, "other", {"rank = 2": "rank = 3"})
    before = weights(copied)
    with pytest.raises(DataError, match=r"holds a run of another recipe\nhint: .*--no-resume"):
        run_recipe(other, output=copied, quiet=True)
    assert weights(copied) == before


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a NaN loss is an error that names the step and the option to change."""
    original = objective.Answers.loss
    monkeypatch.setattr(
        objective.Answers, "loss", lambda *args, **rest: original(*args, **rest) * float("nan")
    )
    with pytest.raises(FloatingPointError, match=r"task loss is nan at step 0\nhint: .*rates"):
        run_recipe(str(world / "recipe.toml"), output=tmp_path / "run", quiet=True)


def test_a_recipe_without_data_is_refused(world: Path, tmp_path: Path) -> None:
    """Law: a run without [data] is an error that says what to add."""
    text = (world / "recipe.toml").read_text()
    start, end = text.index("[data]"), text.index("[training]")
    (world / "bare.toml").write_text(text[:start] + text[end:])
    with pytest.raises(DataError, match="needs `train` and `test` and `retention_test` in"):
        run_recipe(str(world / "bare.toml"), output=tmp_path / "run", quiet=True)


@pytest.mark.parametrize("key", ["test", "retention_test"])
def test_missing_test_data_are_refused_before_anything_is_built(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Law: what the evaluation will lack is said before the first step, not after the last."""
    recipe = recipe_with(world, "untested", {f"\n{key} = ": "\n#"})
    monkeypatch.setattr(run, "build", None)
    with pytest.raises(DataError, match=f"a run needs `{key}` in"):
        run_recipe(recipe, output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_other_training_data_are_refused(world: Path, copied: Path) -> None:
    """Law: a run never goes on with data that have changed since it began."""
    train = world / "train.jsonl"
    before = train.read_text()
    train.write_text("".join(before.splitlines(keepends=True)[1:]))
    try:
        with pytest.raises(DataError, match=r"a run of other training data\nhint: .*--no-resume"):
            run_recipe(str(world / "recipe.toml"), output=copied, quiet=True)
    finally:
        train.write_text(before)


def test_retention_without_texts_is_refused(world: Path, tmp_path: Path) -> None:
    """Law: a retention method that wants text says which key of [data] names it."""
    recipe = recipe_with(world, "textless", {'retention = "texts.jsonl"\n': ""})
    with pytest.raises(DataError, match=r'hint: add `retention = "texts\.jsonl"` to \[data\]'):
        run_recipe(recipe, output=tmp_path / "run", quiet=True)


@pytest.mark.slow
def test_a_quiet_run_prints_nothing(
    world: Path, copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Law: a quiet run writes neither to standard output nor to standard error."""
    run_recipe(str(world / "recipe.toml"), output=copied, quiet=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_run_says_where_its_report_is(
    world: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: a run's last lines are the paths of its report and its adapter."""
    run_recipe(str(world / "recipe.toml"), output=copied)
    printed = "".join(capsys.readouterr().out.split())
    assert f"report{copied}/report.html" in printed
    assert printed.endswith(f"adapter{copied}/adapter")


def shown(*calls: tuple[Any, ...], terminal: bool = False) -> str:
    """What a progress shows for these calls."""
    stream = io.StringIO()
    progress = WorkProgress(Console(file=stream, force_terminal=terminal, width=100))
    with progress.showing():
        for call in calls:
            progress(*call)
    return stream.getvalue()


def test_progress_is_a_line_for_each_tenth_where_nobody_watches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law: off a terminal, work prints one line for each tenth, and what time is left till the end.

    What comes at once, since it was done before, is no measure of the rest. Quick work prints its
    end alone.
    """
    quick = shown(*[("training", done, 1000) for done in range(1, 1001)])
    assert quick == "training: 1000 of 1000\n"
    monkeypatch.setattr("safe_framework.utils.progress._APART", 0.0)
    lines = shown(*[("training", done, 1000, "loss 1") for done in range(1, 1001)]).splitlines()
    assert [re.sub(r", about \d+ s left", ", LEFT", line) for line in lines] == [
        *[f"training: {tenth}00 of 1000, LEFT  loss 1" for tenth in range(1, 10)],
        "training: 1000 of 1000  loss 1",
    ]
    resumed = shown(("training", 500, 1000), ("training", 1000, 1000)).splitlines()
    assert [line.strip() for line in resumed] == [
        "training: 500 of 1000",
        "training: 1000 of 1000",
    ]


def test_progress_is_a_bar_on_a_terminal() -> None:
    """Law: on a terminal, each label has one bar with its count and its note."""
    seen = shown(("training", 3, 9, "loss 1"), ("encoding", 1, 2), terminal=True)
    assert not [
        word for word in ("training", "3/9", "loss 1", "encoding", "1/2") if word not in seen
    ]


def test_a_log_stands_above_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: what is logged to standard error while bars show is a line of its own above them."""
    stream, errors = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", errors)
    logger, handler = logging.getLogger("acme"), logging.StreamHandler()
    monkeypatch.setattr(logger, "handlers", [handler])
    progress = WorkProgress(Console(file=stream, force_terminal=True, width=100))
    with progress.showing():
        progress("training", 3, 9)
        logger.warning("a note")
    logger.warning("afterwards")
    assert "a note" in [CSI.sub("", line).strip() for line in stream.getvalue().splitlines()]
    assert errors.getvalue() == "afterwards\n"


CSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_a_bar_says_what_is_left_in_any_width(width: int) -> None:
    """Law: no line of a bar is wider than the terminal, and counts and time left are never cut."""
    stream = io.StringIO()
    progress = WorkProgress(Console(file=stream, force_terminal=True, width=width))
    with progress.showing():
        for label in ("training", "reading states of retention_test"):
            progress(label, 0, 12_000)
            progress._begun[label] = (time.monotonic() - 60, 0)
            progress(label, 6_000, 12_000, "loss 1.23, [kept] 99 %")
    lines = [CSI.sub("", line).rstrip("\r") for line in stream.getvalue().splitlines()]
    assert all(len(line) <= width for line in lines)
    assert len([line for line in lines if re.search(r"6000/12000 +\d:\d\d left", line)]) >= 2
    assert width < 160 or "loss 1.23, [kept] 99 %" in lines[-2]


def test_progress_in_a_pipe_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a pipe gets no control characters, short lines, and a first one after some seconds."""
    monkeypatch.setattr("safe_framework.utils.progress._SOON", 0.0)
    monkeypatch.setattr("safe_framework.utils.progress._APART", 0.0)
    stream = io.StringIO()
    progress = WorkProgress(Console(file=stream, width=60))
    with progress.showing():
        for done in range(1001):
            progress("reading states of retention_test", done, 1000, "loss [1.2] and more words")
    text = stream.getvalue()
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert max(map(len, text.splitlines())) <= 60
    assert "loss [1.2]" in text
    assert re.match(r"reading states of retention_test: \d of 1000, about", text)
    assert text.count("retention_test: ") == 11


def test_either_folder_of_a_run_is_taken(finished: Path, world: Path, tmp_path: Path) -> None:
    """Law: a run's folder and its adapter's name the same adapter, run and recipe."""
    adapter, recipe = finished / "adapter", str((world / "recipe.toml").absolute())
    assert adapter_in(finished) == adapter_in(adapter) == adapter
    assert run_of(adapter) == run_of(finished) == finished
    assert recipe_of(str(finished)) == recipe_of(str(adapter)) == (recipe, finished)
    assert recipe_of("quickstart") == ("quickstart", None)
    with pytest.raises(DataError, match="no run's"):
        recipe_of(str(tmp_path))
    for text in ("{}", "no", '{"source": 3}', '{"source": "/no/such/recipe.toml"}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(DataError, match="recipe"):
            recipe_of(str(tmp_path))


@pytest.mark.parametrize("name", ["", "adapter"])
def test_commands_take_either_folder(
    name: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: what reads a run reads it by its own folder and by its adapter's."""
    target = str(finished / name)
    assert main(["check", target]) == 0
    assert main(["data", "check", target]) == 1  # the texts are those that are trained on
    assert main(["compare", target, str(finished)]) == 0
    assert main(["pick", target]) == 1
    said = capsys.readouterr()
    assert "is a valid recipe" in said.out
    assert "monitor" in said.err
    assert safe_framework.load(target).modalities.keys() == {"audio"}
    assert open_target(target)[1] == finished / "adapter"


def test_progress_of_nothing_is_no_error() -> None:
    """Law: work that has no items shows nothing and does not fail."""
    assert shown(("training", 0, 0)) == ""


def test_a_clock_adds_up_what_a_part_took() -> None:
    """Law: the time of a part is the sum of its blocks, and no other's."""
    clock = Clock()
    with clock.timing("train"):
        pass
    first = clock.seconds["train"]
    with clock.timing("train"):
        time.sleep(0.001)
    with clock.timing("evaluate"):
        pass
    assert clock.seconds["train"] > first + 0.0009


def test_weights_of_another_shape_are_never_resumed_from(world: Path, copied: Path) -> None:
    """Law: a checkpoint that does not fit the model is an error that names it."""
    place = max((copied / "checkpoints").iterdir()) / trainer.WEIGHTS
    tensors = load_file(place)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, place)
    with pytest.raises(safe_framework.SafeError, match="does not fit the model"):
        run_recipe(str(world / "recipe.toml"), output=copied, quiet=True)


def test_a_recording_that_cannot_be_encoded_is_named_by_its_row(
    world: Path, tmp_path: Path
) -> None:
    """Law: where the encoder refuses a training recording, the error gives the row's line."""
    soundfile.write(world / "long.wav", np.zeros(40_000), 16_000)
    rows = (world / "train.jsonl").read_text().splitlines()
    rows[4] = json.dumps({"question": "what", "answer": "low", "audio": "long.wav"})
    (world / "long.jsonl").write_text("\n".join(rows))
    recipe = recipe_with(world, "long", {'"train.jsonl"': '"long.jsonl"'})
    with pytest.raises(safe_framework.SafeError, match=r"^long\.jsonl:5: "):
        run_recipe(recipe, output=tmp_path / "run", quiet=True)


@pytest.mark.slow
def test_the_log_of_a_resumed_run_begins_at_the_first_step(world: Path, copied: Path) -> None:
    """Law: after a second call, the report still shows the curve of the whole training."""
    before = (copied / "report.html").read_text()
    run_recipe(str(world / "recipe.toml"), output=copied, quiet=True)
    after = (copied / "report.html").read_text()
    assert before.count("<svg") == after.count("<svg") > 0
