"""``safe list``: every plugin, recipe and card there is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_framework.cli.table import table


def add(commands: Any) -> None:
    """Declare the command."""
    text = "list plugins, recipes and checkpoints"
    commands.add_parser("list", help=text, description=text).set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework import catalogue
    from safe_framework._recipe.docstrings import docstring, summary
    from safe_framework._registry import REGISTRIES, origin

    for registry in REGISTRIES.values():
        points = registry.points()
        rows = [
            (p.name, origin(p).partition(" (")[0], summary(docstring(p)).partition("\n")[0])
            for p in points
        ]
        _section(f"{registry.kind}s", rows)
    _section("recipes", [(name, _comment(path)) for name, path in catalogue.recipes().items()])
    _section("checkpoints", [(name, _summary(path)) for name, path in catalogue.cards().items()])
    return 0


def _section(title: str, rows: Sequence[Sequence[str]]) -> None:
    print(title)
    print(table(rows) if rows else "  none")


def _comment(recipe: Path) -> str:
    """The first line of a recipe, if it is a comment."""
    first = recipe.read_text("utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def _summary(card: Path) -> str:
    import tomli

    return str(tomli.loads(card.read_text("utf-8")).get("summary", ""))
