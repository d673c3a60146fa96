"""Read a recipe from a file, the catalogue or a string."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tomli

from safe_framework.config.cross_checks import (
    check_compose,
    check_data_files,
    check_modality_names,
    check_speedups,
    check_stage_b,
    check_stages,
    check_tasks,
)
from safe_framework.config.diagnostics import Finding, RecipeError, locate, problem_at
from safe_framework.config.options import schema_options
from safe_framework.config.schema import Recipe
from safe_framework.config.toml_positions import Span
from safe_framework.config.type_checks import WRONG, Checker
from safe_framework.utils import catalogue
from safe_framework.utils.suggest import suggest


def read_recipe(source: str | Path, *, with_data: bool = True) -> Recipe:
    """Read a recipe, and check that the data files it names are there.

    Args:
        source: a file, or the name of a recipe in the catalogue.
        with_data: whether ``[data]`` must say what to train on, and its files be there.

    Raises:
        RecipeError: there is no such recipe, or it has mistakes; all of them are shown.
    """
    path = _find(source)
    text = _text_of(path)
    return _parse(text, str(path), path.parent.absolute(), with_data, check_files=with_data)


def read_stored_recipe(path: Path, folder: Path) -> Recipe:
    """Read the recipe of an adapter, whose data need not be there.

    Args:
        path: of the file.
        folder: what its file names are relative to.

    Raises:
        RecipeError: it has mistakes; all of them are shown.
    """
    return parse_recipe(_text_of(path), str(path), folder, with_data=False)


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"`{path}` is not UTF-8 text", hint="save it as UTF-8") from error


def parse_recipe(
    text: str,
    source: str = "recipe.toml",
    folder: Path | None = None,
    *,
    with_data: bool = True,
    check_files: bool = False,
) -> Recipe:
    """Check the text of a recipe.

    Args:
        text: TOML.
        source: what to call it in messages.
        folder: what its file names are relative to; the working directory if None.
        with_data: whether ``[data]`` must say what to train on.
        check_files: whether the data files that it names must be there.

    Raises:
        RecipeError: it has mistakes; all of them are shown.
    """
    return _parse(text, source, folder or Path.cwd(), with_data, check_files=check_files)


def _parse(text: str, source: str, folder: Path, with_data: bool, *, check_files: bool) -> Recipe:
    document = _load(text, source)
    findings: list[Finding] = []
    values = Checker(findings).record(document, schema_options(Recipe), ())
    check_modality_names(document, findings)
    check_tasks(document, findings, with_data=with_data)
    check_speedups(document, findings)
    check_compose(document, findings)
    if check_files:
        check_data_files(document, folder, findings)
        check_stage_b(document, folder, findings)
    if values is not WRONG:
        check_stages(values, findings)
    if findings or values is WRONG:
        raise RecipeError.of(locate(findings, text, source))
    return Recipe(**values, text=text, source=source, folder=folder)


def _load(text: str, source: str) -> dict[str, Any]:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        message = f"not valid TOML: {error.msg[:1].lower()}{error.msg[1:]}"
        place = Span(error.lineno, error.colno, 1)
        raise RecipeError.of([problem_at(place, text, source, message)]) from error


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if isinstance(source, Path) or path.suffix or os.sep in source:
        there = [file.name for file in path.parent.glob("*.toml")]
        hint = suggest(path.name, there, f"recipes in `{path.parent}`")
        raise RecipeError(f"there is no file `{source}`", hint=hint)
    try:
        return catalogue.recipe_path(source)
    except catalogue.CatalogueError as error:
        message = f"`{source}` is neither a file nor a recipe of the catalogue"
        raise RecipeError(message, hint=error.hint) from error
