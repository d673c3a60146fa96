"""From the text of a recipe to a checked :class:`Recipe`, or to every mistake in it at once."""

from safe_framework._recipe.problems import Problem, RecipeError, positioned
from safe_framework._recipe.read import parse_recipe, read_recipe
from safe_framework._recipe.schema import (
    BaseSpec,
    ComposeSpec,
    DataSpec,
    EncoderSpec,
    EvaluationSpec,
    ForgetSpec,
    GateSpec,
    MixSpec,
    ModalitySpec,
    MonitorSpec,
    PluginSpec,
    Recipe,
    RetentionSpec,
    StageBSpec,
    StageSpec,
    TrainingSpec,
    UntilSpec,
)

__all__ = [
    "BaseSpec",
    "ComposeSpec",
    "DataSpec",
    "EncoderSpec",
    "EvaluationSpec",
    "ForgetSpec",
    "GateSpec",
    "MixSpec",
    "ModalitySpec",
    "MonitorSpec",
    "PluginSpec",
    "Problem",
    "Recipe",
    "RecipeError",
    "RetentionSpec",
    "StageBSpec",
    "StageSpec",
    "TrainingSpec",
    "UntilSpec",
    "parse_recipe",
    "positioned",
    "read_recipe",
]
