"""``safe run RECIPE``: train, evaluate and report what a recipe describes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_INTERRUPTED = "interrupted: the same command, without --no-resume, goes on from the last save"


def add(commands: Any) -> None:
    """Declare the command."""
    text = "train, evaluate and report what a recipe describes"
    parser = commands.add_parser("run", help=text, description=text)
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a file, a name in the catalogue, or a run's folder"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--no-resume",
        dest="resume",
        action="store_false",
        help="start anew even where an interrupted run could go on",
    )
    parser.add_argument("--quiet", action="store_true", help="print the folder alone")
    parser.set_defaults(run=_run, loads_models=True, interrupted=_INTERRUPTED)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.runs.run import run_recipe
    from safe_framework.training import distributed
    from safe_framework.utils.memory import keep_freed_memory
    from safe_framework.utils.run_folder import recipe_of

    keep_freed_memory()
    source, made = recipe_of(arguments.recipe)
    folder = run_recipe(
        source, output=arguments.output or made, resume=arguments.resume, quiet=arguments.quiet
    )
    if distributed.is_main_process():
        print(folder)
    return 0
