"""``safe report RUN``: one page of everything that is known of a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_TEXTS = 64


def add(commands: Any) -> None:
    """Declare the command."""
    text = "write one self-contained page about a run, measuring its gate and attention if needed"
    parser = commands.add_parser("report", help=text, description=text)
    parser.add_argument(
        "run_folder", type=Path, metavar="RUN", help="a run's folder, or its adapter's"
    )
    parser.add_argument("--output", type=Path, metavar="PATH", help="default: RUN/report.html")
    parser.add_argument(
        "--no-measure",
        dest="measure",
        action="store_false",
        help="show what was measured already; the base is not loaded",
    )
    parser.add_argument(
        "--texts",
        type=int,
        default=_TEXTS,
        metavar="N",
        help=f"at most so many in the gate sweep; default: {_TEXTS}",
    )
    parser.add_argument("--recipe", metavar="RECIPE", help="where the run's recipe is now")
    parser.set_defaults(run=_run, loads_models=True)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.runs.finished import open_run
    from safe_framework.runs.inspection import report_on
    from safe_framework.utils.console import plain_console
    from safe_framework.utils.progress import WorkProgress

    run, console = open_run(arguments.run_folder, arguments.recipe), plain_console()
    with WorkProgress(console).showing() as progress:
        page = report_on(
            run, output=arguments.output, measure=arguments.measure,
            most_texts=arguments.texts, progress=progress,
        )  # fmt: skip
    console.print(f"report   {page}", soft_wrap=True)
    return 0
