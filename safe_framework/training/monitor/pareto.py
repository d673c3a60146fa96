"""Every adapter of a run that no other one beats in both gain and retention, on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from safe_framework.core.adapter import (
    WEIGHTS,
    adapter_tensors,
    copy_tensors,
    own_copy,
    write_folder,
)
from safe_framework.core.model import SafeModel
from safe_framework.training.monitor.event_log import write_whole
from safe_framework.training.monitor.measurement_reading import Reading, front

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
            write_folder(self.place(reading.step), self._fill)

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
            {name: own_copy(tensor) for name, tensor in tensors},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )
