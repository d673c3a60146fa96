"""``safe check RECIPE``: every mistake of a recipe, without loading a model."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Declare the command."""
    text = "say whether a recipe is valid, or everything that is wrong with it"
    parser = commands.add_parser("check", help=text, description=text)
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or a name in the catalogue")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework._recipe import read_recipe

    read_recipe(arguments.recipe)
    print(f"{arguments.recipe} is a valid recipe")
    return 0
