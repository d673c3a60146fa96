"""``safe probe RECIPE``: which encoder, and which of its layers, to build on."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from safe_framework.evaluation.encoder_comparison import EncoderScore


def add(commands: Any) -> None:
    """Declare the command."""
    text = "compare encoders and their layers by a linear probe, before anything is trained"
    parser = commands.add_parser("probe", help=text, description=text)
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a file, a name in the catalogue, or a run's folder"
    )
    parser.add_argument("--modality", metavar="NAME", help="default: the recipe's only one")
    parser.add_argument(
        "--models", nargs="+", default=(), metavar="MODEL", help="default: the recipe's own"
    )
    parser.add_argument(
        "--layers", nargs="+", type=int, default=(), metavar="N", help="default: every layer"
    )
    parser.add_argument(
        "--rows", type=int, default=0, metavar="N", help="at most so many; default: all"
    )
    parser.add_argument("--json", action="store_true", help="print the scores for a program")
    parser.set_defaults(run=_run, loads_models=True)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.config.read import read_recipe
    from safe_framework.evaluation.encoder_comparison import compare_encoders
    from safe_framework.utils.console import plain_console
    from safe_framework.utils.progress import WorkProgress
    from safe_framework.utils.run_folder import recipe_of

    source, _ = recipe_of(arguments.recipe)
    console = plain_console(stderr=arguments.json)
    with WorkProgress(console).showing() as progress:
        found = compare_encoders(
            read_recipe(source),
            arguments.modality,
            models=arguments.models,
            layers=arguments.layers,
            most=arguments.rows,
            progress=progress,
        )
    if arguments.json:
        print(json.dumps([_plain(score) for score in found], indent=2))
        return 0
    console.print(table(found))
    console.print(advice(found))
    return 0


def _plain(score: EncoderScore) -> dict[str, Any]:
    import attrs

    return attrs.asdict(score)


def table(scores: Sequence[EncoderScore]) -> Table:
    """A line for each encoder; ``*`` is the recipe's own."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from safe_framework.evaluation.metrics import interval
    from safe_framework.utils.formatting import percent

    sources = any(score.other_sources for score in scores)
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = ["model", "layer", "width", "right", "95 %"]
    columns += ["new source", "95 %"] if sources else []
    for name in columns:
        shown.add_column(
            name,
            justify="left" if name == "model" else "right",
            no_wrap=name not in ("model", "95 %"),
            overflow="fold",
        )
    for score in scores:
        layer = score.options.get("layer")
        cells = [
            f"{score.options.get('model', '')}{' *' if score.own else ''}",
            "" if layer is None else str(layer),
            str(score.dim),
            percent(score.accuracy.value),
            interval(score.accuracy),
        ]
        if score.other_sources:
            cells += [percent(score.other_sources.value), interval(score.other_sources)]
        shown.add_row(*cells)
    return shown


def advice(scores: Sequence[EncoderScore]) -> str:
    """Which one reads best, and what was compared."""
    best = max(scores, key=lambda one: (one.other_sources or one.accuracy).value)
    named = ", ".join(f"{name} = {json.dumps(value)}" for name, value in best.options.items())
    score = best.other_sources or best.accuracy
    lines = [
        f"* the recipe's own; a linear probe on {best.accuracy.n} training rows, each named by one"
        " that was fitted on others",
        f"best{' on a source that the probe never saw' if best.other_sources else ''}: {named}",
    ]
    others = [(one.other_sources or one.accuracy).high for one in scores if one is not best]
    if others and max(others) >= score.value:
        lines.append("others are within its interval: this many rows do not tell them apart")
    return "\n".join(lines)
