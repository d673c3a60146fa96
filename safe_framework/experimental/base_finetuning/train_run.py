"""Where a run changes the base: after Stage A, or from an adapter that Stage A has left."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import attrs
from rich.console import Console

from safe_framework.config.schema import Recipe
from safe_framework.core.adapter import CONFIG, WEIGHTS, load_tensors, read_config
from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import AdapterError, SafeError
from safe_framework.evaluation.base_drift_changed import BaseChanged
from safe_framework.evaluation.base_drift_changed_wording import for_the_adapter, sentence
from safe_framework.experimental.base_finetuning.train import stage_b_methods, train_stage_b
from safe_framework.training import distributed_processes
from safe_framework.training.distributed import Sharding
from safe_framework.training.train import Log, train
from safe_framework.utils.progress import WorkProgress


def train_both(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    folder: Path,
    *,
    progress: WorkProgress,
    resume: bool = True,
    data: RecipeData | None = None,
    sharding: Sharding | None = None,
) -> Log:
    """Train Stage A, and Stage B if the recipe has it; what was logged is counted through.

    Args:
        model: built from the recipe.
        recipe: whose stages.
        examples: of the task.
        folder: where checkpoints go.
        progress: the bars.
        resume: go on from the newest whole checkpoints.
        data: what the recipe names, where some of it has been read already.
        sharding: how devices share the base's layers; None leaves them whole.

    Raises:
        AdapterError: the adapter to start from does not fit, or its base was changed.
        SafeError: several processes are to change a base.
    """
    if recipe.stage_b is None:
        return train(
            model, recipe, examples, folder,
            progress=progress, resume=resume, data=data, sharding=sharding,
        )  # fmt: skip
    if distributed_processes.count() > 1:
        raise SafeError(
            "stage B changes the base in one process only",
            hint="leave [stage_b] out of what several processes train, and run it alone afterwards "
            "with `start`",
        )
    stage_b_methods(recipe)  # wrong ones are refused before Stage A has taken its time
    if recipe.stage_b.start is None:
        alone = attrs.evolve(recipe, stage_b=None)
        log = train(model, alone, examples, folder, progress=progress, resume=resume, data=data)
    else:
        start_from(model, recipe.folder / recipe.stage_b.start)
        log = []
    done = recipe.training.max_steps if recipe.stage_b.start is None else 0
    more = train_stage_b(
        model, recipe, examples, folder, progress=progress, resume=resume, data=data
    )
    return [*log, *({**row, "step": row["step"] + done} for row in more)]


def start_from(model: SafeModel, place: Path) -> None:
    """Give a model the senses of an adapter of Stage A.

    Raises:
        AdapterError: it does not fit, or its base was changed.
    """
    if read_config(place).base_change is not None:
        raise AdapterError(
            f"`{place}` has been in stage B already: its base was changed",
            hint="let `start` of [stage_b] name an adapter of stage A",
        )
    load_tensors(model, place)


def start_of(recipe: Recipe) -> dict[str, str]:
    """What the adapter that a recipe starts from is recognised by; empty where there is none."""
    if recipe.stage_b is None or recipe.stage_b.start is None:
        return {}
    place = recipe.folder / recipe.stage_b.start
    content = b"".join((place / name).read_bytes() for name in (CONFIG, WEIGHTS))
    return {"start": hashlib.sha256(content).hexdigest()}


def remember_drift(model: SafeModel, changed: BaseChanged | None, folder: Path) -> None:
    """Let the saved adapter and its card say how far the base went, now that it is known."""
    if model.base_change is not None and changed is not None:
        model.base_change.drift = for_the_adapter(changed.drift)
        model.save_pretrained(folder)


def warn_of(changed: BaseChanged | None, console: Console) -> None:
    """Say on the screen that the base was changed, if it was."""
    if changed is not None:
        console.print(sentence(changed), style="bold red", highlight=False, markup=False)
