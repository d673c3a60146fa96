"""``safe check RECIPE``: every mistake of a recipe and its rows, and whether its base will do."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any

from safe_framework.cli.table import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safe_framework.config.schema import Recipe
    from safe_framework.errors import DataError
    from safe_framework.runs.model_sizes import PartSize
    from safe_framework.utils.progress import ProgressCallback, WorkProgress

_MOST = 20  # errors that are printed
_BEFORE_BARS = 1.0  # seconds of work after which bars appear


def add(commands: Any) -> None:
    """Declare the command."""
    text = "say whether a recipe is valid, or everything that is wrong with it"
    parser = commands.add_parser("check", help=text, description=text)
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a file, a name in the catalogue, or a run's folder"
    )
    parser.add_argument(
        "--sizes",
        action="store_true",
        help="also build every part without weights and count its parameters; no network",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.config.read import read_recipe
    from safe_framework.runs.base_check import check_base
    from safe_framework.utils.run_folder import recipe_of

    source, _ = recipe_of(arguments.recipe)
    recipe = read_recipe(source)
    notes = check_base(recipe)
    print(f"{source} is a valid recipe")
    for note in notes:
        print(note)
    wrong = _look_at_data(recipe)
    if recipe.stage_b is not None:
        print("its [stage_b] changes the base: L1 and L2 will not hold")
    if recipe.training.speedups == "off":
        print("its [training] runs without speed-ups: its steps take longer")
    if recipe.training.note:
        print(recipe.training.note)
    if arguments.sizes:
        _print_sizes(recipe)
    return 1 if wrong else 0


def _look_at_data(recipe: Recipe) -> int:
    """Say what is wrong with its data; for how many things a run would be refused."""
    from safe_framework.data.preview import lacking, missing_sources, preview

    with ExitStack() as bars:
        seen = preview(recipe, _bars_if_needed(bars))
    for heading, errors in {
        "a run would be refused for its data:": seen.errors,
        "a run would leave out rows:": seen.skipped,
    }.items():
        groups = _that_say_the_same(errors)
        if groups:
            print(heading)
        for first, *others in groups[:_MOST]:
            print(first)
            if others:
                print(f"and {len(others)} more rows of it, to {_place(others[-1])}")
        if left := sum(map(len, groups[_MOST:])):
            print(f"and {left} more: `safe data check` lists all")
    if recipe.data is not None and (missing := missing_sources(recipe)) is not None:
        print(f"it can be built, but not run: {missing}")
    for error in lacking(recipe) if recipe.data is not None else ():
        print(f"it can be built, but not run: {error}")
    if seen.unopened:
        print(f"not looked at, since they are on the hub: {', '.join(seen.unopened)}")
    return len(seen.errors)


def _that_say_the_same(errors: Sequence[DataError]) -> list[list[DataError]]:
    """The errors of rows, those together that say the same of rows of one file."""
    found: dict[tuple[str, str, str], list[DataError]] = {}
    for error in errors:
        file = _place(error).rpartition(":")[0]
        said = error.message.removeprefix(_place(error))
        found.setdefault((file, said, error.hint), []).append(error)
    return list(found.values())


def _place(error: DataError) -> str:
    return error.message.partition(": ")[0]


def _bars_if_needed(stack: ExitStack) -> ProgressCallback:
    """Bars that appear once the work takes long; what draws them takes a while too."""
    shown: list[WorkProgress] = []
    begun = monotonic()

    def progress(label: str, done: int, total: int) -> None:
        """Draw them."""
        if not shown and monotonic() - begun < _BEFORE_BARS:
            return
        if not shown:
            from safe_framework.utils.console import plain_console
            from safe_framework.utils.progress import WorkProgress

            shown.append(stack.enter_context(WorkProgress(plain_console(stderr=True)).showing()))
        shown[0](label, done, total)

    return progress


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
