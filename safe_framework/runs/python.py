"""Runs from Python: a model and rows that are in memory, in place of a recipe's names for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from safe_framework.config.schema import Recipe
from safe_framework.core.model import SafeModel
from safe_framework.core.recipe_of import check_named
from safe_framework.data.preview import missing_sources
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import DataError
from safe_framework.evaluation.results import Evaluation
from safe_framework.runs.options import (
    EVALUATION_OPTIONS,
    TRAINING_OPTIONS,
    check_call,
    recipe_for,
)
from safe_framework.runs.run import Run, evaluate_run, run
from safe_framework.utils.console import plain_console
from safe_framework.utils.files import atomic_write
from safe_framework.utils.progress import WorkProgress


def train(
    model: SafeModel,
    train: Any = None,
    test: Any = None,
    *,
    retention: Any = None,
    retention_test: Any = None,
    foreign: Any = None,
    foreign_test: Any = None,
    validation: Any = None,
    retention_validation: Any = None,
    foreign_validation: Any = None,
    output: str | Path | None = None,
    resume: bool = True,
    quiet: bool = False,
    without_recipe: bool = False,
    **options: Any,
) -> Run:
    """Train a model's modalities as a recipe's run does, evaluate it and report.

    Each source is what ``[data]`` of a recipe names (a file, a folder, ``hf:owner/name:split``),
    or rows: a list, a generator, a ``datasets.Dataset`` or ``IterableDataset``, a dataset of torch.
    Afterwards ``model.recipe()`` says what was done.

    Args:
        model: with the modalities to train.
        train: rows of the task; None where ``mix`` names several datasets.
        test: held-out rows of the task; without them nothing is evaluated.
        retention: text of the base's own domain, which must keep its answers. It is distilled on
            unless ``regularizers`` says otherwise.
        retention_test: the same, held out; without it nothing is evaluated.
        foreign: samples from outside the task, as irrelevant ones.
        foreign_test: the same, held out.
        validation: of the task, for the monitor.
        retention_validation: text for the monitor.
        foreign_validation: samples for the monitor.
        output: the run's folder; ``runs/NAME`` by the modalities' names if None.
        resume: go on with what the folder holds; otherwise start anew.
        quiet: print nothing.
        without_recipe: save the adapter without a recipe, for parts that are no installed plugin.
        **options: every key of ``[training]`` and of ``[data]`` by its name; ``regularizers``, the
            tables of ``[[retention]]``, or names; ``gate``, ``evaluation``, ``monitor``,
            ``curriculum`` and ``stage_b``, as the tables of those names.

    Raises:
        KeywordError: there is no such option.
        RecipeError: an option is of a wrong type or out of its range.
        DataError: rows are missing or wrong, or the folder holds a run of other data or options.
        AdapterError: a part is no installed plugin, and ``without_recipe`` is False.
        SafeError: the model has no modality.
    """
    check_call(model, options, TRAINING_OPTIONS, "safe_framework.train")
    sources = {
        "train": train, "test": test, "retention": retention, "retention_test": retention_test,
        "foreign": foreign, "foreign_test": foreign_test, "validation": validation,
        "retention_validation": retention_validation, "foreign_validation": foreign_validation,
    }  # fmt: skip
    if train is None and not options.get("mix"):
        raise DataError("there is nothing to train on", hint="give rows: train(model, rows)")
    recipe, memory = recipe_for(model, sources, options, "safe_framework.train")
    if not without_recipe:  # before the first step, not after the last
        check_named(model, "pass `without_recipe=True` and load with `load(folder, model=...)`")
    model.without_recipe = without_recipe
    folder = Path(output) if output is not None else Path("runs") / "-".join(model.modalities)
    recipe = _kept(recipe, folder)
    model.adopt(recipe)
    return run(recipe, folder, resume=resume, quiet=quiet, memory=memory, model=model)


def _kept(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe, written into the run's folder, where ``safe report`` and others look for it."""
    path = folder / f"{folder.absolute().name}.toml"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, recipe.text)
    return attrs.evolve(recipe, source=str(path), folder=folder.absolute())


def evaluate(
    model: SafeModel,
    test: Any,
    *,
    train: Any,
    retention_test: Any,
    foreign_test: Any = None,
    quiet: bool = True,
    **options: Any,
) -> Evaluation:
    """Measure a model as a recipe's run does; the model is left as it was.

    Args:
        model: whose first modality is measured.
        test: held-out rows of the task, as ``train`` takes them.
        train: what it was trained on: chance and a linear probe are taken from it.
        retention_test: text of the base's own domain, held out.
        foreign_test: samples from outside the task, held out.
        quiet: print nothing.
        **options: every key of ``[evaluation]`` and of ``[data]`` by its name, and ``seed``.

    Raises:
        KeywordError: there is no such option.
        RecipeError: an option is of a wrong type or out of its range.
        DataError: rows are missing or wrong.
        SafeError: the model has no modality.
    """
    check_call(model, options, EVALUATION_OPTIONS, "safe_framework.evaluate")
    sources = {
        "train": train, "test": test, "retention_test": retention_test, "foreign_test": foreign_test
    }  # fmt: skip
    own = dict(options)
    asked = {name: own.pop(name) for name in ("batch_size",) if name in own}
    recipe, memory = recipe_for(
        model, sources, {**own, "evaluation": asked, "regularizers": []}, "safe_framework.evaluate"
    )
    if (missing := missing_sources(recipe)) is not None:
        raise missing
    with WorkProgress(plain_console(quiet=quiet)).showing() as progress:
        return evaluate_run(model, recipe, RecipeData(recipe, progress, memory), progress)
