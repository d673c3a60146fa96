"""``safe cache RECIPE``: compute what training keeps, before it is needed."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Declare the command."""
    text = "encode a recipe's samples and read its texts now, so that training finds them"
    parser = commands.add_parser("cache", help=text, description=text)
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a file, a name in the catalogue, or a run's folder"
    )
    parser.add_argument(
        "--processes", type=_count, default=1, metavar="N", help="share samples out among so many"
    )
    parser.add_argument(
        "--samples", action="store_true", help="encode samples alone, under a launcher in parts"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    parser.set_defaults(
        run=_run, loads_models=True, interrupted="interrupted: what was computed is kept"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.training.precompute import (
        encode_samples,
        precompute,
        precompute_in_processes,
    )
    from safe_framework.utils.run_folder import recipe_of

    source, _ = recipe_of(arguments.recipe)
    if arguments.samples:
        encode_samples(source, quiet=arguments.quiet)
        return 0
    if arguments.processes > 1:
        return precompute_in_processes(arguments.processes, source, quiet=arguments.quiet)
    precompute(source, quiet=arguments.quiet)
    return 0
