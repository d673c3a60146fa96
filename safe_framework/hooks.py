"""Events that any number of installed plugins may answer.

A distribution answers them by an entry point of the group ``safe_framework.hooks`` that names a
module, whose functions are marked with :data:`implementation`:

>>> @implementation
... def safe_training_step(step, metrics):
...     print(step, metrics["loss"])
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pluggy

from safe_framework.interfaces.registry import group_points, origin

specification = pluggy.HookspecMarker("safe_framework")
implementation = pluggy.HookimplMarker("safe_framework")


@specification
def safe_training_step(step: int, metrics: Mapping[str, float]) -> None:
    """Called at each logging step of training, with the numbers that were logged."""


@specification
def safe_training_event(event: Mapping[str, Any]) -> None:
    """Called when the monitor or the curriculum logs an event, with its entry in the event log.

    ``event["event"]`` is ``"evaluation"``, ``"warning"``, ``"rollback"``, ``"stage"``, ``"stop"``
    or ``"best"``.
    """


@specification
def safe_run_finished(run_folder: Path, metrics: Mapping[str, float]) -> None:
    """Called once a run has written its folder, with its final numbers."""


def hook_manager() -> pluggy.PluginManager:
    """A manager that holds every installed hook; a broken one is named in a warning and skipped."""
    manager = pluggy.PluginManager("safe_framework")
    manager.add_hookspecs(sys.modules[__name__])
    for point in group_points("safe_framework.hooks"):
        try:
            manager.register(point.load(), name=origin(point))
            manager.check_pending()
        except Exception as error:  # third-party code: anything may come out of an import
            manager.set_blocked(origin(point))
            why = f"{type(error).__name__}: {error}"
            message = f"hooks `{point.name}` of {origin(point)} are skipped: {why}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
    return manager
