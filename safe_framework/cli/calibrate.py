"""``safe calibrate ADAPTER``: when a gate opens by itself, and how seldom it does so by mistake."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from safe_framework.config.schema import Recipe
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example


def add(commands: Any) -> None:
    """Declare the command."""
    text = 'choose when `gate = "auto"` opens, and show how seldom it does so by mistake'
    parser = commands.add_parser("calibrate", help=text, description=text)
    parser.add_argument(
        "adapter", type=Path, metavar="ADAPTER", help="an adapter's folder, or its run's"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="your own calls: rows with `question` or `text`, and `relevant` true or false",
    )
    parser.add_argument(
        "--risk",
        type=_share,
        metavar="SHARE",
        help="largest share of irrelevant calls that may open it; default: the recipe's, 0.01",
    )
    parser.add_argument(
        "--confidence", type=_share, metavar="SHARE", help="default: the recipe's, 0.95"
    )
    parser.add_argument("--modality", metavar="NAME", help="default: all that have a head")
    parser.set_defaults(run=_run, loads_models=True)


def _share(text: str) -> float:
    if not 0 < (value := float(text)) < 1:
        raise ValueError(text)
    return value


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.core.build import load
    from safe_framework.runs.relevance import calibrate, own_calls, shipped_calls
    from safe_framework.utils.console import plain_console
    from safe_framework.utils.memory import keep_freed_memory
    from safe_framework.utils.progress import WorkProgress
    from safe_framework.utils.run_folder import adapter_in

    keep_freed_memory()
    folder, console = adapter_in(arguments.adapter), plain_console()
    model = load(folder)
    for name in _senses(model, arguments.modality):
        recipe, examples = _recipe_and_rows(model, name, folder)
        spec = recipe.modalities[name].relevance_head
        risk = arguments.risk or (spec.risk if spec else 0.01)
        confidence = arguments.confidence or (spec.confidence if spec else 0.95)
        with WorkProgress(console).showing() as progress:
            if arguments.data is None:
                given = shipped_calls(model, name, recipe, examples)
            else:
                given = own_calls(model, name, recipe, arguments.data)
            statement = calibrate(
                model, name, given, risk=risk, confidence=confidence, progress=progress
            )
        show(console, name, statement)
    model.save_pretrained(folder)
    console.print(f"adapter  {folder}", soft_wrap=True)
    return 0


def show(console: Any, name: str, statement: Mapping[str, Any]) -> None:
    """Print what a calibration showed, and what was too little to show what was asked.

    Args:
        console: where to.
        name: of the sense.
        statement: as ``runs.relevance.calibrate`` gives it.
    """
    from safe_framework.evaluation.relevance import shortage

    console.print(table(name, statement))
    calls = {kind: int(one["calls"]) for kind, one in statement["false_opens"].items()}
    few = shortage(calls, statement["risk"], statement["confidence"])
    if few:
        console.print(f"too few: {few}", style="bold yellow")
    console.print(statement["sentence"])


def table(name: str, statement: Mapping[str, Any]) -> Table:
    """A line for each kind of call."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from safe_framework.utils.formatting import percent

    shown = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"the gate of {name}")
    for column in ("calls", "opened", "of", f"at most, {percent(statement['confidence'])} sure"):
        shown.add_column(column, justify="left" if column == "calls" else "right")
    for kind, one in statement["false_opens"].items():
        shown.add_row(kind, str(one["count"]), str(one["calls"]), percent(one["at_most"]))
    for kind, one in statement["checked"].items():
        limit = f"{percent(one['high'])}, two-sided"
        shown.add_row(f"{kind}, checked", str(one["count"]), str(one["calls"]), limit)
    for kind, one in statement["opens"].items():
        low = f"at least {percent(one['low'])}"
        shown.add_row(f"relevant, {kind}", str(one["count"]), str(one["calls"]), low)
    return shown


def _senses(model: SafeModel, chosen: str | None) -> list[str]:
    from safe_framework.errors import SafeError

    if chosen is not None:
        return [chosen]
    found = [name for name in model.modalities if model.modality(name).relevance is not None]
    if not found:
        raise SafeError(
            "no modality of this adapter has a relevance head to calibrate",
            hint='train with `attend = "answer"`, or `relevance = true` in [modalities.NAME]',
        )
    return found


def _recipe_and_rows(model: SafeModel, name: str, folder: Path) -> tuple[Recipe, list[Example]]:
    """The recipe where its run left it, with its test rows; else the adapter's own, without any."""
    from safe_framework.config.read import read_recipe
    from safe_framework.data.recipe_data import RecipeData
    from safe_framework.errors import SafeError
    from safe_framework.utils.run_folder import recipe_of, run_of

    try:
        source, run = recipe_of(str(run_of(folder)))
        recipe = read_recipe(source)
        if run is not None and name in recipe.modalities and recipe.data is not None:
            return recipe, RecipeData(recipe).examples("test", model.encoders)
    except SafeError as error:  # moved, or somebody else's
        print(f"how often it opens is not told, since no test is read: {error}", file=sys.stderr)
    recipe_of_adapter = model.modality(name).built_from
    if recipe_of_adapter is None:
        raise SafeError(
            f"`{folder}` does not say how `{name}` was trained",
            hint="calibrate an adapter that was saved with its recipe",
        )
    return recipe_of_adapter, []
