"""Writes a folder in a process that is killed at each of its steps, one process for each step.

Called as ``python killed_writes.py FOLDER``. For each step it makes ``FOLDER/STEP/adapter``, which
holds ``old``, has a forked process replace it by ``new`` and die at the step, and prints as JSON by
which signal each ended.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from safe_framework.utils.files import atomic_folder


def die(*_: Any, **__: Any) -> None:
    """End without any clean-up, as when the power fails."""
    os.kill(os.getpid(), signal.SIGKILL)


def at(function: str, call: int, *, after: bool) -> Callable[[], Any]:
    """Die before or after the given call of ``os.replace`` or ``shutil.rmtree``."""
    module: Any = {"replace": os, "rmtree": shutil}[function]
    real, calls = getattr(module, function), []

    def counted(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) == call and not after:
            die()
        real(*args, **options)
        if len(calls) == call:
            die()

    return lambda: patch.object(module, function, counted)


STEPS = {
    "writing": None,
    "before_moving_aside": at("replace", 1, after=False),
    "between_the_renames": at("replace", 2, after=False),
    "renamed": at("replace", 2, after=True),
    "removing_the_old": at("rmtree", 1, after=False),
    "done": None,
}
"""A step without a patch dies in ``write`` or not at all."""


def contents(folder: Path, word: str, *, dies: bool = False) -> None:
    """Two files, between which a writer may die."""
    (folder / "first").write_text(word)
    if dies:
        die()
    (folder / "second").write_text(word)


def replace(folder: Path, step: str) -> None:
    """Replace the folder's contents, and die at the step."""

    def write(path: Path) -> None:
        contents(path, "new", dies=step == "writing")

    patched = STEPS[step]
    if patched is None:
        atomic_folder(folder, write, overwrite=True)
    else:
        with patched():
            atomic_folder(folder, write, overwrite=True)


def main(root: Path) -> None:
    """Kill a writer at every step."""
    ended = {}
    for step in STEPS:
        folder = root / step / "adapter"
        folder.mkdir(parents=True)
        contents(folder, "old")
        child = os.fork()
        if child == 0:
            replace(folder, step)
            os._exit(0)
        ended[step] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
