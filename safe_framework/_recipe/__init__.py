"""From the text of a recipe to a checked :class:`Recipe`, or to every mistake in it at once."""

from safe_framework._recipe.problems import Problem, RecipeError, positioned
from safe_framework._recipe.read import parse_recipe, read_recipe
from safe_framework._recipe.schema import (
    BaseSpec,
    ComposeSpec,
    DataSpec,
    EncoderSpec,
    EvaluationSpec,
    GateSpec,
    MixSpec,
    ModalitySpec,
    PluginSpec,
    Recipe,
    RetentionSpec,
    StageBSpec,
    TrainingSpec,
)

__all__ = [
    "BaseSpec",
    "ComposeSpec",
    "DataSpec",
    "EncoderSpec",
    "EvaluationSpec",
    "GateSpec",
    "MixSpec",
    "ModalitySpec",
    "PluginSpec",
    "Problem",
    "Recipe",
    "RecipeError",
    "RetentionSpec",
    "StageBSpec",
    "TrainingSpec",
    "parse_recipe",
    "positioned",
    "read_recipe",
]
