"""``safe compose RECIPE``: make the vision-language base that a recipe describes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Declare the command."""
    text = "put an image encoder and a language model together, as [base.compose] says"
    parser = commands.add_parser("compose", help=text, description=text)
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or a name in the catalogue")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to write it; default: [base] model"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from safe_framework._recipe import read_recipe
    from safe_framework.compose.train import compose_recipe
    from safe_framework.progress import WorkProgress

    recipe = read_recipe(arguments.recipe)
    with WorkProgress(Console(stderr=True, quiet=arguments.quiet)).showing() as progress:
        folder, scores = compose_recipe(recipe, progress, arguments.output)
    if scores is not None:
        print(
            f"{scores.pictures} held-out pictures: own caption chosen among {scores.choices}"
            f" {scores.chosen:.1%} (shown another picture: {scores.chosen_other:.1%}),"
            f" generated exactly {scores.exact:.1%}, its words {scores.words:.1%}"
        )
    print(folder)
    return 0
