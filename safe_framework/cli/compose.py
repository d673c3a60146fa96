"""``safe compose RECIPE``: make the vision-language base that a recipe describes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_framework.experimental.vision_language.scene_scores import SceneScores
    from safe_framework.experimental.vision_language.train import Captioning, Scores


def add(commands: Any) -> None:
    """Declare the command."""
    text = "put an image encoder and a language model together, as [base.compose] says"
    parser = commands.add_parser("compose", help=text, description=text)
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a file, a name in the catalogue, or a run's folder"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to write it; default: [base] model"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=_run, loads_models=True)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.config.read import read_recipe
    from safe_framework.experimental.vision_language.train import compose_recipe
    from safe_framework.utils.console import plain_console
    from safe_framework.utils.memory import keep_freed_memory
    from safe_framework.utils.progress import WorkProgress
    from safe_framework.utils.run_folder import recipe_of

    keep_freed_memory()
    recipe = read_recipe(recipe_of(arguments.recipe)[0])
    with WorkProgress(plain_console(stderr=True, quiet=arguments.quiet)).showing() as progress:
        folder, scores = compose_recipe(recipe, progress, arguments.output)
    if scores is not None:
        print("\n".join(lines(scores)))
    print(folder)
    return 0


def lines(scores: Scores | SceneScores) -> Iterator[str]:
    """The scores as a table, each with its interval."""
    from safe_framework.experimental.vision_language.scene_scores import SceneScores, score_lines

    return score_lines(scores) if isinstance(scores, SceneScores) else _caption_lines(scores)


def _caption_lines(scores: Scores) -> Iterator[str]:
    title = f"{scores.pictures} held-out pictures"
    ways = {
        title: (f"own of {scores.choices} chosen", "exact caption", "F1 of its words"),
        "shown each": _cells(scores.seeing),
        "shown another": _cells(scores.shuffled),
        "language model alone": _cells(scores.blind),
    }
    for name, cells in ways.items():
        yield "  ".join([f"{name:<20}", *(f"{cell:>21}" for cell in cells)])


def _cells(found: Captioning) -> tuple[str, ...]:
    """Each share, in percent, with its 95 % interval."""
    shares = (found.chosen, found.exact, found.words)
    return tuple(f"{s.value:.1%} [{100 * s.low:.1f}, {100 * s.high:.1f}]" for s in shares)
