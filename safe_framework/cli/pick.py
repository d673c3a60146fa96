"""``safe pick RUN``: the adapters that a run's monitor kept, and one of them to take away."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Declare the command."""
    text = "show the adapters of a run that no other beats in gain and retention, and export one"
    parser = commands.add_parser("pick", help=text, description=text)
    parser.add_argument(
        "folder", type=Path, metavar="RUN", help="folder of a run with a monitor, or its adapter's"
    )
    parser.add_argument(
        "--retention", type=float, metavar="SHARE", help="of most gain that kept at least SHARE"
    )
    parser.add_argument(
        "--gain", type=float, metavar="SHARE", help="of most retention that gained at least SHARE"
    )
    parser.add_argument("--step", type=int, metavar="N", help="the one of step N")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to put its folder")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.training.monitor import pareto
    from safe_framework.utils.console import plain_console
    from safe_framework.utils.run_folder import run_of

    folder = run_of(arguments.folder)
    front = pareto.read_pareto(folder)
    chosen = pareto.select(front, arguments.retention, arguments.gain, arguments.step)
    console = plain_console()
    console.print(pareto.table(front, chosen))
    if arguments.output is None:
        console.print("--output DIR puts the marked one there", style="dim")
        return 0
    print(pareto.export(folder, chosen, arguments.output))
    return 0
