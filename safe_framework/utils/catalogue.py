"""The recipes, checkpoint cards and launch configs that ship, by name: plain files, no code."""

from __future__ import annotations

from pathlib import Path

import safe_framework_registry
from safe_framework.errors import SafeError
from safe_framework.utils.suggest import suggest

FOLDER = Path(safe_framework_registry.__file__).parent
KNOWN_PLUGINS = FOLDER / "known_plugins.toml"


class CatalogueError(SafeError, LookupError):
    """A name that the catalogue does not hold."""


def recipes() -> dict[str, Path]:
    """Every recipe of the catalogue, by name."""
    return _files("recipes")


def cards() -> dict[str, Path]:
    """Every card, one for each checkpoint that can be fetched, by name."""
    return _files("cards")


def sprites() -> dict[str, Path]:
    """Every set of small pictures that scenes are drawn from, by name."""
    return _files("sprites")


def questions() -> dict[str, Path]:
    """Every bank of questions, by name."""
    return _files("questions", "jsonl")


def irrelevant() -> dict[str, Path]:
    """Every bank of texts that are about no sample, by name."""
    return _files("irrelevant", "txt")


def launches() -> dict[str, Path]:
    """Every configuration of ``accelerate launch``, by name."""
    return _files("accelerate", "yaml")


def launch_path(name: str) -> Path:
    """The configuration of ``accelerate launch`` called ``name``.

    Raises:
        CatalogueError: the catalogue holds no such configuration.
    """
    return _named(name, launches(), "launch configuration")


def recipe_path(name: str) -> Path:
    """The file of the recipe called ``name``.

    Raises:
        CatalogueError: the catalogue holds no such recipe.
    """
    return _named(name, recipes(), "recipe")


def questions_path(name: str) -> Path:
    """The file of the bank of questions called ``name``.

    Raises:
        CatalogueError: the catalogue holds no such bank.
    """
    return _named(name, questions(), "bank of questions")


def irrelevant_path(name: str) -> Path:
    """The file of the bank of irrelevant texts called ``name``.

    Raises:
        CatalogueError: the catalogue holds no such bank.
    """
    return _named(name, irrelevant(), "bank of irrelevant texts")


def card_path(name: str) -> Path:
    """The file of the card called ``name``.

    Raises:
        CatalogueError: the catalogue holds no such card.
    """
    return _named(name, cards(), "card")


def _files(kind: str, suffix: str = "toml") -> dict[str, Path]:
    return {path.stem: path for path in sorted((FOLDER / kind).glob(f"*.{suffix}"))}


def _named(name: str, files: dict[str, Path], kind: str) -> Path:
    if name not in files:
        hint = suggest(name, files, f"{kind}s")
        raise CatalogueError(f"the catalogue holds no {kind} `{name}`", hint=hint)
    return files[name]
