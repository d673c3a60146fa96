"""A run that is broken off in this process, as by somebody at the keyboard."""

from pathlib import Path
from typing import Any

import pytest

from safe_framework.runs.run import run_recipe
from safe_framework.training import objective


def broken_off(recipe: Path, folder: Path, loss: int) -> None:
    """Run until a loss is asked for the ``loss``-th time."""
    original, calls = objective.ForwardPlanner.predictions, list[int]()

    def breaking(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == loss:
            raise KeyboardInterrupt
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective.ForwardPlanner, "predictions", breaking)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(str(recipe), output=folder, quiet=True)
