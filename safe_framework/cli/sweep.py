"""``safe sweep RUN``: what each strength of a gate gives and keeps, and which to choose."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from safe_framework.evaluation.sweep import GatePoint, GateSweep

_TEXTS = 64


def add(commands: Any) -> None:
    """Declare the command."""
    text = "measure gain and retention from gate 0 to 1, and recommend a gate"
    parser = commands.add_parser("sweep", help=text, description=text)
    parser.add_argument(
        "run_folder", type=Path, metavar="RUN", help="a run's folder, or its adapter's"
    )
    parser.add_argument("--modality", metavar="NAME", help="default: the one that was evaluated")
    parser.add_argument(
        "--gates", type=_numbers, metavar="A,B,...", help="strengths to try; default: 0, 0.1, ... 1"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SHARE",
        help="least share of next tokens that must stay the base's; default: 0.99",
    )
    parser.add_argument(
        "--texts", type=int, default=_TEXTS, metavar="N", help=f"at most so many; default: {_TEXTS}"
    )
    parser.add_argument("--recipe", metavar="RECIPE", help="where the run's recipe is now")
    parser.set_defaults(run=_run, loads_models=True)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.evaluation.sweep import BUDGET, GATES, write_sweep
    from safe_framework.runs.finished import open_run
    from safe_framework.runs.inspection import sweep_gate
    from safe_framework.utils.console import plain_console
    from safe_framework.utils.memory import keep_freed_memory
    from safe_framework.utils.progress import WorkProgress

    keep_freed_memory()
    run, console = open_run(arguments.run_folder, arguments.recipe), plain_console()
    budget = BUDGET if arguments.budget is None else arguments.budget
    with WorkProgress(console).showing() as progress:
        found = sweep_gate(
            run, arguments.modality, gates=arguments.gates or GATES, budget=budget,
            most_texts=arguments.texts, progress=progress,
        )  # fmt: skip
    path = write_sweep(run.folder, found)
    console.print(table(found))
    console.print(recommendation(found))
    console.print(f"sweep    {path}\nreport   safe report {run.folder}", soft_wrap=True)
    return 0


def table(sweep: GateSweep) -> Table:
    """A line for each gate."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    seeing = ("sees",) if sweep.points[0].seeing else ()
    for name in ("gate", "right", "95 %", "kept", "95 %", "KL", *seeing, ""):
        shown.add_column(name, justify="right" if name else "left", no_wrap=name != "95 %")
    for point in sweep.all_points:
        shown.add_row(*_cells(sweep, point))
    return shown


def _cells(sweep: GateSweep, point: GatePoint) -> tuple[str, ...]:
    from safe_framework.evaluation.metrics import interval
    from safe_framework.utils.formatting import percent

    kept = point.kept.agreement
    seen = [percent(point.seeing.accuracy.value)] if point.seeing else []
    mark = "*" if point in sweep.front else " "
    return (
        f"{point.name} {mark}", percent(point.accuracy.value), interval(point.accuracy),
        percent(kept.value), interval(kept), f"{point.kept.kl.value:.2g}", *seen,
        "best" if point == sweep.recommended else "",
    )  # fmt: skip


def recommendation(sweep: GateSweep) -> str:
    """Which gate to set, and how to; or that none within the budget hears anything."""
    from safe_framework.evaluation.sweep import TEST
    from safe_framework.utils.formatting import percent

    best, lines = sweep.recommended, ["* no other gate gains more and keeps as much"]
    if best is not None:
        lines.append(
            f"for at least {percent(sweep.budget)} of tokens kept: "
            f'model.set_gate({best.setting}, "{sweep.modality}")'
        )
    else:
        lines += [nothing_gained(sweep)]
    if sweep.split == TEST:
        lines.append(
            "chosen on the test rows themselves, so the gain told of there is a little too good: "
            "name `validation` in [data] to choose on other rows"
        )
    else:
        lines.append(f"chosen on {len(sweep.places)} rows ({sweep.split}), not on the test's")
    return "\n".join(lines)


def nothing_gained(sweep: GateSweep) -> str:
    """That no gate within the budget gains anything, and what the best that does would keep."""
    from safe_framework.utils.formatting import percent, points

    told = f"no gate that keeps at least {percent(sweep.budget)} of tokens gains anything"
    if not sweep.hearing:
        return f"{told}, nor does any other: the sense is not heard"
    most = max(sweep.hearing, key=lambda point: point.kept.agreement.value)
    kept = most.kept.agreement.value
    return (
        f"{told}: gate {most.name} gains {points(most.over_base.value)} and keeps "
        f"{percent(kept)}; to allow that, --budget {math.floor(1000 * kept) / 1000:g}"
    )
