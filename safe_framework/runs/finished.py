"""A finished run, opened again: its numbers, its model, and the data that it was tested on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
from cattrs.errors import BaseValidationError

from safe_framework.config.plugins import encoders_of
from safe_framework.config.read import read_recipe
from safe_framework.config.schema import Recipe
from safe_framework.core.build import load
from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example
from safe_framework.data.recipe_data import RecipeData, split_by_modality
from safe_framework.errors import DataError, SafeError
from safe_framework.evaluation.results import Evaluation, Seeing
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.runs.run import CURVES, METRICS
from safe_framework.utils.hashing import text_fingerprint
from safe_framework.utils.run_folder import ADAPTER, STATE, run_of


@attrs.define(slots=False)
class RunFolder:
    """What ``safe run`` left in a folder; model and data are loaded when they are asked for.

    Attributes:
        folder: of the run.
        recipe: that made it.
        evaluation: what was measured, without samples.
    """

    folder: Path
    recipe: Recipe
    evaluation: Evaluation

    @cached_property
    def model(self) -> SafeModel:
        """The trained model."""
        return load(self.folder / ADAPTER)

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The encoder of each modality, for whose samples data are read; without the base."""
        return encoders_of(self.recipe)

    @cached_property
    def data(self) -> RecipeData:
        """What the recipe's ``[data]`` names."""
        return RecipeData(self.recipe)

    def modality_or_default(self, modality: str | None) -> str:
        """``modality``, or the one that was evaluated.

        Raises:
            SafeError: the recipe has no such modality.
        """
        if modality is not None and modality not in self.recipe.modalities:
            known = ", ".join(self.recipe.modalities)
            raise SafeError(f"there is no modality `{modality}`", hint=f"modalities: {known}")
        return modality or self.evaluation.modality

    def examples(self, modality: str) -> list[Example]:
        """The test examples that have a sample of ``modality``."""
        return split_by_modality(self.data.examples("test", self.encoders), modality)[0]

    def foreign(self, modality: str) -> list[Sample]:
        """Samples of ``modality`` that are not of the task; may be none."""
        return self.data.samples("foreign_test", modality, self.encoders[modality])

    def evaluation_with_samples(self) -> Evaluation:
        """The evaluation, each answer with the sample and the pictures that were asked about."""
        name = self.evaluation.modality
        by_place = {example.place: example for example in self.examples(name)}
        rows = [
            attrs.evolve(
                row,
                sample=example.samples[name],
                file=example.files.get(name),
                images=example.images,
            )
            if (example := by_place.get(row.place))
            else row
            for row in self.evaluation.answers
        ]
        return attrs.evolve(self.evaluation, answers=tuple(rows), seeing=self._seeing())

    def _seeing(self) -> Seeing | None:
        """What was asked about pictures, each question with its pictures and sample."""
        seeing, name = self.evaluation.seeing, self.evaluation.modality
        if seeing is None:
            return None
        texts = {row.place: row for row in self.data.texts("retention_test", self.encoders)}
        questions = [
            attrs.evolve(
                one, images=row.images, sample=row.samples.get(name), file=row.files.get(name)
            )
            if (row := texts.get(one.place))
            else one
            for one in seeing.questions
        ]
        return attrs.evolve(seeing, questions=tuple(questions))

    def log(self) -> list[Mapping[str, Any]]:
        """What training logged; empty where an older version kept no log."""
        path = self.folder / CURVES
        found: list[Mapping[str, Any]] = (
            json.loads(path.read_text("utf-8")) if path.exists() else []
        )
        return found


def open_run(path: str | Path, recipe: str | None = None) -> RunFolder:
    """Open the run in a folder, or the one that the adapter in a folder came from.

    Args:
        path: the run's folder, or its adapter's.
        recipe: file or catalogue name of the recipe, where it is no longer where it was.

    Raises:
        DataError: the folder holds no finished run, or the recipe is another one than it was.
    """
    folder = run_of(path)
    for name in (METRICS, STATE):
        if not (folder / name).is_file():
            raise DataError(
                f"`{path}` holds no finished run: it has no `{name}`",
                hint="give the folder that `safe run` wrote, or its adapter's",
            )
    state = json.loads((folder / STATE).read_text("utf-8"))
    return RunFolder(folder, _recipe_of(state, folder, recipe), read_metrics(folder))


def read_metrics(folder: Path) -> Evaluation:
    """The numbers of a run.

    Raises:
        DataError: they are missing or cannot be read.
    """
    path = folder / METRICS
    if not path.is_file():
        raise DataError(f"`{folder}` has no `{METRICS}`", hint="let `safe run` finish first")
    try:
        return Evaluation.from_json(path.read_text("utf-8"))
    except (ValueError, BaseValidationError) as error:
        raise DataError(
            f"`{path}` cannot be read: {type(error).__name__}",
            hint="evaluate anew: the recipe's `safe run` trains nothing twice",
        ) from error


def _recipe_of(state: Mapping[str, Any], folder: Path, given: str | None) -> Recipe:
    source = given or state.get("source")
    if source is None or (given is None and not Path(source).is_file()):
        raise DataError(
            f"`{folder}` does not say where its recipe is, or the recipe is no longer there",
            hint="name it with --recipe",
        )
    recipe = read_recipe(source)
    if text_fingerprint(recipe.text) != state["recipe"]:
        raise DataError(
            f"`{source}` is not the recipe that `{folder}` was made with",
            hint="name that one with --recipe, or run the new one in a folder of its own",
        )
    return recipe
