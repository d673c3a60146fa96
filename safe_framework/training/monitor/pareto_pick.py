"""Choose among the adapters that a run's monitor kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import attrs
from rich.table import Table

from safe_framework.core.adapter import read_config, write_folder
from safe_framework.errors import DataError
from safe_framework.training.monitor.measurement_reading import Reading
from safe_framework.training.monitor.pareto import FOLDER, INDEX
from safe_framework.utils.formatting import interval, percent


@attrs.frozen
class Kept:
    """What a run's ``pareto.json`` says.

    Attributes:
        readings: of the adapters in the set, in the order of their steps.
        best: the step of the adapter that the run itself takes.
        limit: the agreement that counts as kept.
    """

    readings: tuple[Reading, ...]
    best: int
    limit: float


def read_pareto(run: Path) -> Kept:
    """The Pareto set of a run.

    Raises:
        DataError: the run has none.
    """
    path = run / FOLDER / INDEX
    if not path.is_file():
        raise DataError(
            f"`{run}` holds no adapters to pick from: there is no `{FOLDER}/{INDEX}`",
            hint="give the folder of a run whose recipe has a table `[monitor]`",
        )
    held = json.loads(path.read_text("utf-8"))
    readings = tuple(Reading.from_dict(one) for one in held["members"])
    return Kept(readings, held["best"], held["limit"])


def choose(
    kept: Kept, retention: float | None = None, gain: float | None = None, step: int | None = None
) -> Reading:
    """One adapter of the set: the run's own choice where nothing is asked for.

    Args:
        kept: the set.
        retention: the least agreement; among those, most gain.
        gain: the least share of right answers; among those, most retention, or most gain if
            ``retention`` is given too.
        step: its step; nothing else may be asked for beside it.

    Raises:
        DataError: none is as it was asked for.
    """
    if step is not None and (retention, gain) != (None, None):
        raise DataError("a step says which adapter it is", hint="leave out the other wishes")
    if step is not None or (retention is None and gain is None):
        wanted = kept.best if step is None else step
        found = [one for one in kept.readings if one.step == wanted]
        asked = f"of step {wanted}"
    else:
        least = (retention or 0.0, gain or 0.0)
        found = [
            one
            for one in kept.readings
            if one.retention.value >= least[0] and one.gain.value >= least[1]
        ]
        asked = f"that kept {percent(least[0])} and gained {percent(least[1])}"
    if not found:
        steps = ", ".join(str(one.step) for one in kept.readings)
        raise DataError(f"there is no adapter {asked}", hint=f"there are those of steps {steps}")
    if retention is None:
        return max(found, key=lambda one: (one.retention.value, one.gain.value))
    return max(found, key=lambda one: (one.gain.value, one.retention.value))


def table(kept: Kept, chosen: Reading) -> Table:
    """The set with its intervals; an arrow marks the chosen one."""
    rows = Table(box=None, pad_edge=False)
    rows.add_column("")
    for heading in ("step", "right", "95 % interval", "kept", "95 % interval", "task loss"):
        rows.add_column(heading, justify="right", no_wrap=True)
    rows.add_column("")
    for one in kept.readings:
        note = "the run's choice" if one.step == kept.best else ""
        if one.retention.value < kept.limit:
            note = f"below {percent(kept.limit)}"
        rows.add_row("→" if one is chosen else "", str(one.step), *_cells(one), note)
    return rows


def _cells(one: Reading) -> Sequence[str]:
    return (
        percent(one.gain.value),
        interval(one.gain),
        percent(one.retention.value),
        interval(one.retention),
        f"{one.task_loss:.3f}",
    )


def export(run: Path, chosen: Reading, output: Path) -> Path:
    """Copy an adapter's folder, whole or not at all.

    Raises:
        AdapterError: what the run holds of it is no whole adapter.
        DataError: ``output`` exists.
    """
    source = run / FOLDER / f"step-{chosen.step}"
    read_config(source)
    if output.exists():
        raise DataError(f"`{output}` exists already", hint="choose another folder")
    write_folder(output, lambda folder: _copy(source, folder))
    return output


def _copy(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name)
