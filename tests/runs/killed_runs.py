"""Runs a recipe many times, each in a process of its own that kills itself at a chosen moment.

Called as ``python killed_runs.py RECIPE FOLDER MOMENT...``. For each moment, ``FOLDER/MOMENT``
gets a run that is killed there and then resumed; ``never`` is not killed. Prints one JSON object
with each moment's exit statuses. Processes are forked, since importing takes longer than a run.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401  # imported once for all runs
import torch
from forked import in_child
from safetensors.torch import save

from safe_framework.core import adapter
from safe_framework.experimental.base_finetuning import train as stage_b
from safe_framework.interfaces.retention import RetentionStore
from safe_framework.runs.run import run_recipe
from safe_framework.training import trainer
from safe_framework.training.monitor import monitor, pareto
from safe_framework.training.monitor.monitor import AdapterSnapshot
from safe_framework.training.monitor.pareto import ParetoSet
from safe_framework.utils.progress import WorkProgress


def die(*args: Any, **kwargs: Any) -> None:
    """As a machine that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_progress(label: str, done: int) -> None:
    """Die once ``label`` has come to ``done``."""
    show = WorkProgress.__call__

    def watch(self: WorkProgress, name: str, so_far: int, *rest: Any) -> None:
        show(self, name, so_far, *rest)
        if name.startswith(label) and so_far >= done:
            die()

    WorkProgress.__call__ = watch  # type: ignore[method-assign]


def at_call(owner: Any, name: str, count: int, before: Callable[..., None]) -> None:
    """Do ``before`` and die instead of the call number ``count`` of ``owner.name``."""
    original, calls = getattr(owner, name), []

    def watch(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            before(*args)
            die()
        return original(*args, **kwargs)

    setattr(owner, name, watch)


def half_weights(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Half of a safetensors file."""
    content = save(tensors)
    path.write_bytes(content[: len(content) // 2])


def half_pickle(value: Any, path: str) -> None:
    """The beginning of an optimizer's file."""
    Path(path).write_bytes(b"PK")


def half_folder(folder: Any, *args: Any) -> None:
    """One file of an old checkpoint removed."""
    next(path for path in Path(folder).iterdir() if path.suffix == ".safetensors").unlink()


def nothing(*args: Any) -> None:
    """Leave everything as it is."""


MOMENTS: dict[str, Callable[[], None]] = {
    "never": lambda: None,
    "aligning": lambda: at_progress("aligning", 3),
    "measuring_retention": lambda: at_progress("null space", 2),
    "between_two_methods": lambda: at_call(RetentionStore, "_refuse_stale", 2, nothing),
    "before_a_save": lambda: at_progress("training", 1),
    "within_an_epoch": lambda: at_progress("training", 5),
    "at_an_epochs_end": lambda: at_progress("training", 6),
    "last_step": lambda: at_progress("training", 9),
    "writing_weights": lambda: at_call(trainer, "save_file", 2, half_weights),
    "writing_optimizer": lambda: at_call(torch, "save", 4, half_pickle),
    "before_the_marker": lambda: at_call(trainer, "mark_complete", 3, nothing),
    "removing_an_old_one": lambda: at_call(shutil, "rmtree", 1, half_folder),
    "between_the_stages": lambda: at_call(stage_b, "change_base", 1, nothing),
    "measuring_fisher": lambda: at_progress("Fisher", 3),
    "early_in_stage_b": lambda: at_progress("stage B", 3),
    "late_in_stage_b": lambda: at_progress("stage B", 5),
    "writing_stage_b": lambda: at_call(trainer, "save_file", 7, half_weights),
    "keeping_an_adapter": lambda: at_call(pareto, "save_file", 2, half_weights),
    "removing_beaten_ones": lambda: at_call(ParetoSet, "prune", 3, nothing),
    "rolling_back": lambda: at_call(AdapterSnapshot, "load_into", 1, nothing),
    "keeping_the_good_one": lambda: at_call(monitor, "save_file", 5, half_weights),
    "taking_the_best": lambda: at_call(ParetoSet, "load", 1, nothing),
    "writing_the_adapter": lambda: at_call(adapter, "_card", 1, nothing),
}


def killed_then_resumed(recipe: str, folder: Path, moment: str) -> list[int]:
    """The exit statuses of a run that is killed, and of the one that goes on."""

    def broken() -> None:
        MOMENTS[moment]()
        run_recipe(recipe, output=folder, quiet=True)

    def resumed() -> None:
        run_recipe(recipe, output=folder, quiet=True)

    return [in_child(broken), in_child(resumed)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, parent, *moments = sys.argv[1:]
    print(json.dumps({m: killed_then_resumed(place, Path(parent) / m, m) for m in moments}))
