"""Every adapter of a run that no other one beats in both gain and retention, on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import attrs
from rich.table import Table
from safetensors.torch import load_file, save_file

from safe_framework.core.adapter import WEIGHTS, adapter_tensors, copy_tensors, read_config
from safe_framework.core.model import SafeModel
from safe_framework.errors import DataError
from safe_framework.evaluation.metrics import interval
from safe_framework.training.monitor.event_log import write_whole
from safe_framework.training.monitor.measurement import Reading, front
from safe_framework.utils.files import atomic_folder
from safe_framework.utils.formatting import percent
from safe_framework.utils.tensors import cpu_copy

FOLDER, INDEX = "pareto", "pareto.json"


class ParetoSet:
    """Adapter folders ``step-N``, and ``pareto.json`` with what was measured of each.

    An adapter that was beaten goes only with the next checkpoint: until then a killed run may
    come back to where it was not beaten yet.

    Args:
        folder: of the set.
        model: whose adapter is saved.
        gates: of each modality once training is over.
    """

    def __init__(self, folder: Path, model: SafeModel, gates: dict[str, float]) -> None:
        self.folder, self.model, self.gates = folder, model, gates
        self._facts: dict[str, bytes] | None = None

    def clear(self) -> None:
        """Remove what an earlier run left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, reading: Reading, readings: Sequence[Reading]) -> None:
        """Save the adapter as it is now, if no earlier one beats it.

        Args:
            reading: of it.
            readings: all of the run, this one too.
        """
        if reading in front(readings):
            atomic_folder(self.place(reading.step), self._fill, overwrite=True)

    def index(self, readings: Sequence[Reading], chosen: int, limit: float) -> None:
        """Write down what the set holds, which is the best, and what counts as kept."""
        members = [{**one.to_dict(), "folder": f"step-{one.step}"} for one in front(readings)]
        held = {"best": chosen, "limit": limit, "members": members}
        write_whole(self.folder / INDEX, json.dumps(held, indent=2) + "\n")

    def prune(self, readings: Sequence[Reading]) -> None:
        """Remove the adapters that were beaten."""
        kept = {self.place(one.step) for one in front(readings)}
        for path in self.folder.glob("*step-*"):
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def put(self, step: int) -> None:
        """Give the model the adapter of a step."""
        place = self.place(step) / WEIGHTS
        copy_tensors(adapter_tensors(self.model), load_file(place), place)

    def place(self, step: int) -> Path:
        """The folder of a step's adapter."""
        return self.folder / f"step-{step}"

    def prepare(self, *, writes: bool) -> None:
        """Note all of an adapter's folder but its weights: training does not change it.

        It holds fingerprints of base and encoders, which take a while. Processes that share the
        base's layers all call this, and the one that writes has it.
        """
        if self._facts is not None:
            return
        held, whole = self.model.gates, self.folder / ".facts"
        for name, gate in self.gates.items():
            self.model.set_gate(gate, name)
        self.model.save_pretrained(whole, is_main_process=writes)
        for name, gate in held.items():
            self.model.set_gate(gate, name)
        files = [one for one in whole.iterdir() if one.name != WEIGHTS] if writes else []
        self._facts = {one.name: one.read_bytes() for one in files}
        if writes:
            shutil.rmtree(whole)

    def _fill(self, folder: Path) -> None:
        for name, content in (self._facts or {}).items():
            (folder / name).write_bytes(content)
        tensors = adapter_tensors(self.model).items()
        save_file(
            {name: cpu_copy(tensor) for name, tensor in tensors},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )


# Choose among the adapters that a run's monitor kept.


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
    atomic_folder(output, lambda folder: _copy(source, folder), overwrite=True)
    return output


def _copy(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name)
