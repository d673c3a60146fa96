"""Kills a run at random moments, each in a process of its own, and lets each go on.

Called as ``python random_kills.py RECIPE FOLDER SEED COUNT``. An unbroken run counts the moments
at which a process may die: before and after every file that Python makes, renames or removes,
half-way through every file of tensors, and at every linear layer that computes. Of them, ``COUNT``
are drawn: half while a checkpoint or the adapter is written. Prints one JSON object for each.
Processes are forked with the model built already, since both take longer than a run.
"""

import io
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401  # imported once for all runs
import safetensors.torch
import torch
from forked import in_child

import safe_framework
from safe_framework.errors import SafeError
from safe_framework.runs import run
from safe_framework.training import trainer

WEIGHTS = "adapter/adapter_model.safetensors"
CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"}
BAD_ADAPTER = 3


class Moments:
    """Counts the moments of a run and dies at one of them.

    Args:
        fatal: the number of the moment at which to die; -1 for none.
        folder: of the run; files elsewhere do not count.
    """

    def __init__(self, fatal: int, folder: Path) -> None:
        self.fatal, self.folder = fatal, str(folder)
        self.labels: list[str] = []

    def __call__(self, label: str) -> None:
        """One moment."""
        self.labels.append(label)
        if len(self.labels) - 1 == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Python is about to touch a file."""
        if event not in CHANGES or not isinstance(args[0], (str, Path)):
            return
        writes = event != "open" or (isinstance(args[1], str) and args[1][0] in "wax")
        inside = str(args[0]).startswith(self.folder) or event in ("os.remove", "os.rmdir")
        if writes and inside:
            self(f"{event} {args[0]}")

    def install(self) -> None:
        """Watch files, tensors and layers from now on."""
        sys.addaudithook(self.audit)
        slow_tensors, slow_pickle, linear = self._slow_tensors(), self._slow_pickle(), self._layer()
        safetensors.torch.save_file = trainer.save_file = slow_tensors
        torch.save = slow_pickle
        torch.nn.functional.linear = linear

    def _written(self, content: bytes, path: Any) -> None:
        with open(path, "wb", buffering=0) as file:
            file.write(content[: len(content) // 2])
            self(f"half {path}")
            file.write(content[len(content) // 2 :])
        self(f"whole {path}")

    def _slow_tensors(self) -> Callable[..., None]:
        def save_file(tensors: Any, path: Any, metadata: Any = None) -> None:
            self._written(safetensors.torch.save(tensors, metadata), path)

        return save_file

    def _slow_pickle(self) -> Callable[..., None]:
        original = torch.save

        def save(value: Any, path: Any, **options: Any) -> None:
            buffer = io.BytesIO()
            original(value, buffer, **options)
            self._written(buffer.getvalue(), path)

        return save

    def _layer(self) -> Callable[..., Any]:
        original = torch.nn.functional.linear

        def linear(*args: Any, **options: Any) -> Any:
            self("computing")
            return original(*args, **options)

        return linear


def train(recipe: str, folder: Path, fatal: int = -1) -> None:
    """The run up to its adapter; what is measured afterwards changes no weight."""
    moments = Moments(fatal, folder)
    moments.install()

    def over(*args: Any) -> None:
        folder.with_suffix(".moments").write_text(json.dumps(moments.labels))
        os._exit(0)

    run.evaluate_run = over
    run.run_recipe(recipe, output=folder, quiet=True)


def check_adapters(folder: Path, expected: bytes) -> None:
    """End with ``BAD_ADAPTER`` if anything that loads is not the whole adapter."""
    for place in [*folder.glob("adapter"), *folder.glob(".adapter*")]:
        try:
            safe_framework.load(place)
        except SafeError:
            continue
        if (place / "adapter_model.safetensors").read_bytes() != expected:
            os._exit(BAD_ADAPTER)


def drawn(labels: list[str], seed: int, count: int) -> list[int]:
    """Moments of all kinds: of the adapter, of checkpoints, and of anything else."""
    dice, places = random.Random(seed), list(range(len(labels)))
    adapter = [p for p in places if "/.adapter-" in labels[p]]
    checkpoints = [p for p in places if "/checkpoint-" in labels[p]]
    chosen = {*dice.sample(adapter, count // 4), *dice.sample(checkpoints, count // 4)}
    while len(chosen) < count:
        chosen.add(dice.choice(places))
    return sorted(chosen)


def main(recipe: str, parent: Path, seed: int, count: int) -> None:
    """Run once in peace, then once for each moment."""
    torch.set_num_threads(1)
    parsed = run.read_recipe(recipe)
    model = run.build(parsed)
    run.build = lambda *args, **options: model  # each child has a copy of its own
    assert in_child(lambda: train(recipe, parent / "first")) == 0  # keeps frames for all others
    peace = parent / "peace"
    assert in_child(lambda: train(recipe, peace)) == 0
    expected = (peace / WEIGHTS).read_bytes()
    labels = json.loads(peace.with_suffix(".moments").read_text())
    for number in drawn(labels, seed, count):
        folder = parent / f"run{number}"
        killed = in_child(lambda: train(recipe, folder, number))  # noqa: B023  # called at once
        loadable = in_child(lambda: check_adapters(folder, expected))  # noqa: B023  # the same
        resumed = in_child(lambda: train(recipe, folder))  # noqa: B023  # the same
        same = resumed == 0 and (folder / WEIGHTS).read_bytes() == expected
        told = {"moment": labels[number], "killed": killed, "loadable": loadable}
        print(json.dumps({**told, "resumed": resumed, "same": same}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
