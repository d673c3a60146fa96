"""One run from recipe to report: build, train, save, evaluate, show."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console

from safe_framework._recipe import Recipe, read_recipe
from safe_framework.assembly import build
from safe_framework.data.examples import Example, read_examples, read_samples, read_texts
from safe_framework.errors import DataError
from safe_framework.evaluation import Evaluation, evaluate, table
from safe_framework.evaluation.report import write_report
from safe_framework.fingerprint import text_fingerprint
from safe_framework.hooks import hook_manager
from safe_framework.model import SafeModel
from safe_framework.progress import WorkProgress
from safe_framework.training.train import train

ADAPTER, CHECKPOINTS, METRICS, REPORT, STATE = (
    "adapter",
    "checkpoints",
    "metrics.json",
    "report.html",
    "run.json",
)


def run_recipe(
    source: str, *, output: Path | None = None, resume: bool = True, quiet: bool = False
) -> Path:
    """Do everything that a recipe says, and write the run's folder.

    The folder gets ``adapter/``, ``metrics.json``, ``report.html`` and ``checkpoints/``. A run
    that was killed goes on from its last whole checkpoint and ends at the same weights.

    Args:
        source: a recipe file, or the name of a catalogue recipe.
        output: the run's folder; ``runs/NAME`` if None.
        resume: go on with what the folder holds; otherwise start anew.
        quiet: print nothing.

    Raises:
        RecipeError: the recipe has mistakes.
        DataError: data are missing, or the folder holds a run of another recipe or other data.
    """
    recipe = read_recipe(source)
    _check_data(recipe)
    folder = output or Path("runs") / Path(recipe.source).stem
    _claim(folder, recipe, resume)
    console = Console(quiet=quiet, stderr=False)
    clock = Clock()
    with WorkProgress(console).showing() as progress:
        with clock.timing("build"):
            model = build(recipe)
        examples = _examples(model, recipe)
        with clock.timing("train"):
            log = train(
                model, recipe, examples["train"], folder / CHECKPOINTS,
                progress=progress, resume=resume,
            )  # fmt: skip
        model.save_pretrained(folder / ADAPTER)
        with clock.timing("evaluate"):
            evaluation = measure(model, recipe, examples, progress)
    evaluation = _with_costs(evaluation, folder, clock)
    _write(folder, recipe, evaluation, log)
    console.print(table(evaluation))
    console.print(f"report   {folder / REPORT}\nadapter  {folder / ADAPTER}", highlight=False)
    return folder


def measure(
    model: SafeModel,
    recipe: Recipe,
    examples: Mapping[str, list[Example]],
    progress: WorkProgress,
) -> Evaluation:
    """Evaluate the recipe's first modality on its test data."""
    assert recipe.data is not None
    modality = next(iter(model.modalities))
    encoder = model.modality(modality).encoder
    foreign = recipe.data_files().get("foreign_test")
    return evaluate(
        model,
        modality=modality,
        train=examples["train"],
        test=examples["test"],
        texts=read_texts(recipe.data_files()["retention_test"], recipe.data.prompt),
        foreign=read_samples(foreign, modality, encoder) if foreign else (),
        seed=recipe.training.seed,
        progress=progress,
        **attrs.asdict(recipe.evaluation),
    )


class Clock:
    """Seconds spent in each part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the time that the block takes to ``part``."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    names = ("safe-framework", "torch", "transformers", "peft", "accelerate")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def _check_data(recipe: Recipe) -> None:
    """Refuse a recipe whose run would find out only after training that it cannot be evaluated."""
    files = recipe.data_files()
    if missing := [key for key in ("train", "test", "retention_test") if key not in files]:
        raise DataError(
            f"a run needs {' and '.join(f'`{key}`' for key in missing)} in [data]",
            hint="name a JSONL file for each in the recipe",
        )


def _examples(model: SafeModel, recipe: Recipe) -> dict[str, list[Example]]:
    assert recipe.data is not None
    encoders = {name: model.modality(name).encoder for name in model.modalities}
    files = recipe.data_files()
    return {
        split: read_examples(files[split], encoders, recipe.data.prompt)
        for split in ("train", "test")
    }


def _claim(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Make the folder this recipe's own, or refuse to mix two runs in it."""
    state = folder / STATE
    mine = _identity(recipe)
    if not resume:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    elif state.exists() and (held := json.loads(state.read_text("utf-8"))) != mine:
        what = "another recipe" if held.get("recipe") != mine["recipe"] else "other training data"
        raise DataError(
            f"`{folder}` holds a run of {what}",
            hint="start anew there with --no-resume, or choose another folder with --output",
        )
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f".{STATE}"  # renamed once it is written, so that a kill leaves no half file
    whole.write_text(json.dumps(mine) + "\n", "utf-8")
    whole.replace(state)


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What a run's weights depend on, as far as the recipe and the files that it names go."""
    files = recipe.data_files()
    trained_on = {
        key: hashlib.sha256(files[key].read_bytes()).hexdigest()
        for key in ("train", "retention", "foreign")
        if key in files
    }
    return {"recipe": text_fingerprint(recipe.text), "data": trained_on}


def _with_costs(evaluation: Evaluation, folder: Path, clock: Clock) -> Evaluation:
    size = sum(file.stat().st_size for file in (folder / ADAPTER).iterdir())
    seconds = {f"{part}_seconds": spent for part, spent in clock.seconds.items()}
    return attrs.evolve(evaluation, costs={"adapter_bytes": size, **seconds})


def _write(folder: Path, recipe: Recipe, evaluation: Evaluation, log: list[dict[str, Any]]) -> None:
    (folder / METRICS).write_text(evaluation.to_json(), "utf-8")
    write_report(
        folder / REPORT,
        evaluation,
        curves=log,
        recipe_text=recipe.text,
        versions=versions(),
        title=Path(recipe.source).stem,
    )
    hook_manager().hook.safe_run_finished(
        run_folder=folder, metrics=json.loads(evaluation.to_json())
    )
