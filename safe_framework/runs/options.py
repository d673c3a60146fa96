"""A recipe out of keyword arguments, for a model and rows that are in memory.

What is given is written down as TOML and read as any recipe is, so that types, defaults, checks
and messages are those of recipes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import tomli

from safe_framework.config.read import parse_recipe
from safe_framework.config.schema import (
    DATA_FILES,
    DataSpec,
    EvaluationSpec,
    Recipe,
    TrainingSpec,
    is_dataset,
    mixed,
    stage_key,
)
from safe_framework.core.model import SafeModel
from safe_framework.core.recipe_of import recipe_tables
from safe_framework.data.readers import MemoryRows
from safe_framework.data.recipe_data import InMemory
from safe_framework.errors import DataError, KeywordError, SafeError
from safe_framework.utils.in_memory import MEMORY
from safe_framework.utils.suggest import nearest
from safe_framework.utils.toml_writer import plain, toml_document

_TABLES = ("monitor", "evaluation", "stage_b")
_OF_DATA = tuple(f.name for f in attrs.fields(DataSpec) if f.name not in DATA_FILES)
_OF_TRAINING = tuple(field.name for field in attrs.fields(TrainingSpec))
_OF_EVALUATION = tuple(field.name for field in attrs.fields(EvaluationSpec))
TRAINING_OPTIONS = (*_OF_DATA, *_OF_TRAINING, *_TABLES, "curriculum", "gate", "regularizers")
"""What ``train`` takes beside data."""
EVALUATION_OPTIONS = (*_OF_DATA, *_OF_EVALUATION, "seed")
"""What ``evaluate`` takes beside data."""


def check_call(
    model: SafeModel, options: Mapping[str, Any], known: Sequence[str], caller: str
) -> None:
    """Refuse a model without modalities, and options that nothing takes.

    Args:
        model: that is to be trained or measured.
        options: by name.
        known: names.
        caller: what was called.

    Raises:
        KeywordError: an option is unknown.
        SafeError: the model has no modality.
    """
    if not model.modalities:
        raise SafeError(
            "the model has no modality", hint="add one first: model.add_modality(name, ...)"
        )
    for name in options:
        if name not in known:
            hint = nearest(name, known) or f"options: {', '.join(sorted(known))}"
            raise KeywordError(f"`{caller}` takes no option `{name}`", hint=hint)


def recipe_for(
    model: SafeModel, sources: Mapping[str, Any], options: Mapping[str, Any], caller: str
) -> tuple[Recipe, InMemory]:
    """The recipe of what is to be done with a model, and what of it is in memory.

    Options that are not given are those of the recipe that the model was built from or trained
    by, if there is one, else a recipe's defaults. Data are those that are given alone.

    Args:
        model: with its modalities.
        sources: by key of ``[data]``: names, as a recipe has them, or rows; None for none.
        options: by name; None for what is not given.
        caller: what was called, for messages.

    Raises:
        RecipeError: an option is of a wrong type or out of its range.
        DataError: of a source no rows can be had.
    """
    given = {name: value for name, value in options.items() if value is not None}
    tables, rows = recipe_tables(model), dict[str, MemoryRows]()
    tables["base"].pop("compose", None)  # which made it
    held = tables.pop("data", {})
    data = {key: one for key, one in held.items() if key not in (*DATA_FILES, "mix")}
    training = dict(tables.pop("training", {}))
    evaluation = dict(tables.pop("evaluation", {}))
    for name, value in given.items():
        if name in _OF_DATA:
            data[name] = value
        elif name in _OF_TRAINING:
            training[name] = value
        elif name in _OF_EVALUATION:
            evaluation[name] = value
    evaluation |= given.get("evaluation", {})
    if "mix" in data:
        data["mix"] = [_mixed_table(table, rows) for table in data["mix"]]
    data |= {key: named(source, key, rows) for key, source in sources.items() if source is not None}
    stages = given.get("curriculum", tables.pop("curriculum", []))
    for name in ("monitor", "stage_b"):
        if name in given:
            tables[name] = given[name]
    if "gate" in given:
        _set_gates(tables["modalities"], given["gate"])
    methods = _methods(given.get("regularizers"), tables.pop("retention", None), data)
    document = {
        **tables,
        "retention": methods,
        "data": data,
        "training": training,
        "evaluation": evaluation,
        "curriculum": [_stage_table(stage, n, rows) for n, stage in enumerate(stages)],
    }
    text = toml_document(plain({key: one for key, one in document.items() if one}))
    folder = model.built_from.folder if model.built_from is not None else Path.cwd()
    return parse_recipe(text, caller, folder, check_files=True), memory_of(model, rows)


def memory_of(model: SafeModel, rows: Mapping[str, MemoryRows]) -> InMemory:
    """What a run of a model in memory need not load."""
    return InMemory(rows, model.base_processor, model.config)


def recipe_with_rows(recipe: Recipe, data: Mapping[str, Any]) -> tuple[Recipe, InMemory]:
    """A recipe whose ``[data]`` names rows in memory, and these.

    Args:
        recipe: as it was read.
        data: rows by key of ``[data]``, instead of what the recipe names there.

    Raises:
        RecipeError: there is no such key.
    """
    tables, rows = tomli.loads(recipe.text), dict[str, MemoryRows]()
    own = {key: named(source, key, rows) for key, source in data.items()}
    tables["data"] = {**tables.get("data", {}), **own}
    made = parse_recipe(toml_document(tables), recipe.source, recipe.folder, check_files=True)
    return made, InMemory(rows)


def named(source: Any, key: str, rows: dict[str, MemoryRows]) -> str:
    """What a recipe calls a source: its name, or that of its rows, which are put into ``rows``.

    Raises:
        DataError: no rows can be had of it.
    """
    if isinstance(source, str) and is_dataset(source):
        return source
    if isinstance(source, (str, os.PathLike)):
        return str(Path(source).absolute())
    rows[key] = MemoryRows(source, key)
    return f"{MEMORY}{key}"


def _mixed_table(table: Mapping[str, Any], rows: dict[str, MemoryRows]) -> dict[str, Any]:
    made = dict(table)
    for split in ("train", "test"):
        source = made.get(split)
        if source is None:
            continue
        if "name" not in made and not isinstance(source, (str, os.PathLike)):
            raise DataError(
                "a dataset of `mix` whose rows are in memory has no name",
                hint='add one: {"name": "captions", "train": rows}',
            )
        made[split] = named(source, mixed(split, made.get("name", "")), rows)
    return made


def _stage_table(
    stage: Mapping[str, Any], number: int, rows: dict[str, MemoryRows]
) -> dict[str, Any]:
    if stage.get("train") is None:
        return dict(stage)
    return {**stage, "train": named(stage["train"], stage_key(number), rows)}


def _set_gates(modalities: dict[str, Any], gate: Mapping[str, Any]) -> None:
    """Put gate tables, by modality or one for all, into the tables of modalities."""
    by_name = bool(gate) and gate.keys() <= modalities.keys()
    for name, table in modalities.items():
        own = gate.get(name) if by_name else gate
        if own is not None:
            table["gate"] = {**table.get("gate", {}), **own}


def _methods(given: Any, held: Any, data: Mapping[str, Any]) -> list[Any]:
    """The tables of ``[[retention]]``: distillation where there are texts and nothing else said.

    Raises:
        DataError: the methods that the model's recipe has are given no texts.
    """
    if given is None:
        if held and "retention" not in data:
            raise DataError(
                "the model's recipe has retention methods, and no texts are given for them",
                hint="give retention=..., or regularizers=[] to do without",
            )
        if held is not None:
            return list(held)
        return [{"use": "distillation"}] if "retention" in data else []
    listed = [given] if isinstance(given, (str, Mapping)) else list(given)
    return [{"use": one} if isinstance(one, str) else dict(one) for one in listed]
