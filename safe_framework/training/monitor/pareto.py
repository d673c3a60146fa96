"""The Pareto set of a run on disk: adapters that no other dominates in gain and retention.

Training writes it; ``safe pick`` reads it and selects an adapter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from rich.table import Table
from safetensors.torch import load_file, save_file

from safe_framework.core.adapter import WEIGHTS, copy_tensors, read_config
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import AUTO, Strength
from safe_framework.core.segments import untaught, without_untaught
from safe_framework.errors import DataError
from safe_framework.evaluation.metrics import interval
from safe_framework.training.monitor.measurement import Measurement, pareto_front
from safe_framework.utils.files import atomic_folder, atomic_write
from safe_framework.utils.formatting import percent
from safe_framework.utils.tensors import cpu_copy

FOLDER, INDEX = "pareto", "pareto.json"


class ParetoSet:
    """Adapter folders ``step-N``, and ``pareto.json`` with what was measured of each.

    A dominated adapter is removed only with the next checkpoint: until then a killed run may
    resume at a step where it was not dominated yet.

    Args:
        folder: of the set.
        model: whose adapter is saved.
        gates: of each modality once training is over; one that a head will decide is kept at 1.
    """

    def __init__(self, folder: Path, model: SafeModel, gates: Mapping[str, Strength]) -> None:
        self.folder, self.model, self.gates = folder, model, gates
        self._static_files: dict[str, bytes] | None = None

    def clear(self) -> None:
        """Remove what an earlier run left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, measurement: Measurement, measurements: Sequence[Measurement]) -> None:
        """Save the adapter as it is now, if no earlier one dominates it.

        Args:
            measurement: of it.
            measurements: all of the run, this one too.
        """
        if measurement in pareto_front(measurements):
            atomic_folder(self.folder_of(measurement.step), self._fill, overwrite=True)

    def write_index(self, measurements: Sequence[Measurement], chosen: int, limit: float) -> None:
        """Write the measurements of the set, which is the best, and what counts as kept."""
        members = [
            {**one.to_dict(), "folder": f"step-{one.step}"} for one in pareto_front(measurements)
        ]
        index = {"best": chosen, "limit": limit, "members": members}
        atomic_write(self.folder / INDEX, json.dumps(index, indent=2) + "\n")

    def prune(self, measurements: Sequence[Measurement]) -> None:
        """Remove the dominated adapters."""
        kept = {self.folder_of(one.step) for one in pareto_front(measurements)}
        for path in self.folder.glob("*step-*"):
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def load(self, step: int) -> None:
        """Load the adapter of a step into the model."""
        path, target = self.folder_of(step) / WEIGHTS, self.model.adapter_tensors()
        copy_tensors(target, untaught(target) | load_file(path), path)

    def folder_of(self, step: int) -> Path:
        """The folder of a step's adapter."""
        return self.folder / f"step-{step}"

    def prepare(self, *, writes: bool) -> None:
        """Read all files of an adapter's folder but its weights, which training does not change.

        They hold fingerprints of base and encoders, which take a while. Processes that share the
        base's layers all call this, and the one that writes gets the files.
        """
        if self._static_files is not None:
            return
        gates, whole = self.model.gates, self.folder / ".facts"
        for name, gate in self.gates.items():
            self.model.set_gate(1.0 if gate == AUTO else gate, name)
        self.model.save_pretrained(whole, is_main_process=writes)
        for name, gate in gates.items():
            self.model.set_gate(gate, name)
        files = [one for one in whole.iterdir() if one.name != WEIGHTS] if writes else []
        self._static_files = {one.name: one.read_bytes() for one in files}
        if writes:
            shutil.rmtree(whole)

    def _fill(self, folder: Path) -> None:
        for name, content in (self._static_files or {}).items():
            (folder / name).write_bytes(content)
        tensors = without_untaught(self.model.adapter_tensors())
        save_file(
            {name: cpu_copy(tensor) for name, tensor in tensors.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )


@attrs.frozen
class ParetoFront:
    """The Pareto set of a run, as ``pareto.json`` has it.

    Attributes:
        measurements: of the adapters in the set, in the order of their steps.
        best: the step of the adapter that the run itself takes.
        limit: the agreement that counts as kept.
    """

    measurements: tuple[Measurement, ...]
    best: int
    limit: float


def read_pareto(run: Path) -> ParetoFront:
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
    index = json.loads(path.read_text("utf-8"))
    measurements = tuple(Measurement.from_dict(one) for one in index["members"])
    return ParetoFront(measurements, index["best"], index["limit"])


def select(
    front: ParetoFront,
    retention: float | None = None,
    gain: float | None = None,
    step: int | None = None,
) -> Measurement:
    """One adapter of the set: the best one of the run where nothing is asked for.

    Args:
        front: the set.
        retention: the least agreement; among those, most gain.
        gain: the least share of right answers; among those, most retention, or most gain if
            ``retention`` is given too.
        step: its step; nothing else may be asked for then.

    Raises:
        DataError: none is as it was asked for.
    """
    if step is not None and (retention, gain) != (None, None):
        raise DataError("a step says which adapter it is", hint="leave out the other wishes")
    if step is not None or (retention is None and gain is None):
        wanted = front.best if step is None else step
        found = [one for one in front.measurements if one.step == wanted]
        asked = f"of step {wanted}"
    else:
        least = (retention or 0.0, gain or 0.0)
        found = [
            one
            for one in front.measurements
            if one.retention.value >= least[0] and one.gain.value >= least[1]
        ]
        asked = f"that kept {percent(least[0])} and gained {percent(least[1])}"
    if not found:
        steps = ", ".join(str(one.step) for one in front.measurements)
        raise DataError(f"there is no adapter {asked}", hint=f"there are those of steps {steps}")
    if retention is None:
        return max(found, key=lambda one: (one.retention.value, one.gain.value))
    return max(found, key=lambda one: (one.gain.value, one.retention.value))


def table(front: ParetoFront, chosen: Measurement) -> Table:
    """The set with its intervals; an arrow marks the chosen one."""
    rows = Table(box=None, pad_edge=False)
    rows.add_column("")
    for heading in ("step", "right", "95 % interval", "kept", "95 % interval", "task loss"):
        rows.add_column(heading, justify="right", no_wrap=True)
    rows.add_column("")
    for one in front.measurements:
        note = "the run's choice" if one.step == front.best else ""
        if one.retention.value < front.limit:
            note = f"below {percent(front.limit)}"
        rows.add_row("→" if one is chosen else "", str(one.step), *_cells(one), note)
    return rows


def _cells(one: Measurement) -> Sequence[str]:
    return (
        percent(one.gain.value),
        interval(one.gain),
        percent(one.retention.value),
        interval(one.retention),
        f"{one.task_loss:.3f}",
    )


def export(run: Path, chosen: Measurement, output: Path) -> Path:
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
