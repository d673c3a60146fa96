"""``safe check RECIPE``: every mistake of a recipe, and whether its base will do, unloaded."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from safe_framework.cli.table import table

if TYPE_CHECKING:
    from safe_framework.config.schema import Recipe
    from safe_framework.runs.model_sizes import PartSize


def add(commands: Any) -> None:
    """Declare the command."""
    text = "say whether a recipe is valid, or everything that is wrong with it"
    parser = commands.add_parser("check", help=text, description=text)
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or a name in the catalogue")
    parser.add_argument(
        "--sizes",
        action="store_true",
        help="also build every part without weights and count its parameters; no network",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.config.read import read_recipe
    from safe_framework.runs.base_check import check_base

    recipe = read_recipe(arguments.recipe)
    notes = check_base(recipe)
    print(f"{arguments.recipe} is a valid recipe")
    for note in notes:
        print(note)
    if recipe.stage_b is not None:
        print("its [stage_b] changes the base: L1 and L2 will not hold")
    if recipe.training.speedups == "off":
        print("its [training] runs without speed-ups: its steps take longer")
    if arguments.sizes:
        _print_sizes(recipe)
    return 0


def _print_sizes(recipe: Recipe) -> None:
    from safe_framework.runs.model_sizes import sizes_of

    sizes = sizes_of(recipe)
    rows = [("", "", "parameters", "trainable", ""), _row("", sizes.base)]
    for modality, parts in sizes.modalities.items():
        rows += [_row(f"{modality} ", part) for part in parts]
    rows.append(("total", "", f"{sizes.total:,}", f"{sizes.trainable:,}", ""))
    print(table(_right(rows)))


def _row(prefix: str, part: PartSize) -> tuple[str, ...]:
    counts = f"{part.parameters:,}", f"{part.trainable:,}"
    return f"{prefix}{part.name}", part.made_of, *counts, part.note


def _right(rows: list[tuple[str, ...]]) -> list[list[str]]:
    """The rows with their numbers, columns 2 and 3, flush right."""
    widths = [max(len(row[place]) for row in rows) for place in (2, 3)]
    return [[*row[:2], row[2].rjust(widths[0]), row[3].rjust(widths[1]), *row[4:]] for row in rows]
