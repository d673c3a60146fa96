"""Stage A: a recipe's data through the frozen encoders once, then the trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from transformers import PrinterCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from safe_framework.config.schema import Recipe
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder, Rows, groups_of
from safe_framework.data.examples import Example
from safe_framework.data.preview import nothing_to_train
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import SafeError
from safe_framework.training import distributed
from safe_framework.training.alignment import Alignment, prepare_projectors
from safe_framework.training.callbacks import ProgressReport
from safe_framework.training.compute.activation_cache import ActivationCaches
from safe_framework.training.distributed import Sharding, shard_layers
from safe_framework.training.monitor.callback import MonitoringState, make_monitoring
from safe_framework.training.schedules import GateSchedule
from safe_framework.training.setup import (
    activation_caches,
    encode_examples,
    frame_stores,
    make_retention,
    variations_of,
)
from safe_framework.training.splits import split_data
from safe_framework.training.trainer import (
    SafeTrainer,
    latest_complete,
    step_of,
    training_arguments,
)
from safe_framework.utils.progress import WorkProgress

Log = list[dict[str, Any]]


def train(
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
    """Train a model's modalities as its recipe says.

    Where several processes train it together, all call this, and each ends with the same weights.

    Args:
        model: built from the recipe.
        recipe: its ``[training]``, ``[[retention]]`` and ``[data]`` are used.
        examples: of the task.
        folder: where checkpoints go; what the monitor keeps goes next to it.
        progress: the bars.
        resume: go on from the newest whole checkpoint in ``folder``.
        data: what the recipe names, where some of it has been read already.
        sharding: how devices share the base's layers; None leaves them whole.

    Returns:
        What was logged: one row for each logging step, from the run's first step on.
    """
    prepared = prepare_training(model, recipe, examples, folder, progress, data, sharding)
    trainer, alignment = prepared.trainer, prepared.alignment
    retention, monitoring = trainer.retention, trainer.monitoring
    if sharding is not None:
        refuse_mixed_rows("training data", [example.row for example in trainer.examples])
        refuse_mixed_rows("retention texts", () if retention is None else retention.rows)
    with distributed.main_process_first():
        checkpoint = latest_complete(folder) if resume else None
    monitoring.begin(checkpoint)
    if checkpoint is None:
        prepare_projectors(model, recipe, trainer.examples, alignment, progress)
        distributed.broadcast(model.adapter_tensors().values())
        distributed.seed_processes(recipe.training.seed)
    elif monitoring.stopped:
        prepared.caches.close()
        return _finish_stopped(monitoring, checkpoint)
    if retention is not None:
        with distributed.main_process_first():
            retention.begin(folder, resumed=checkpoint is not None, progress=progress)
    if checkpoint is None or step_of(checkpoint) < trainer.args.max_steps:
        with distributed.main_process_first():
            trainer.precompute(progress)
    try:
        with _memory_saving(model, recipe, sharding):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        prepared.caches.close()
        model.eval()
    monitoring.finish()
    return _loss_rows(trainer.state)


def refuse_mixed_rows(what: str, rows: Rows) -> None:
    """Refuse rows with pictures beside rows without, where devices share the base's layers.

    Args:
        what: the rows are, for the message.
        rows: that are trained on.

    Raises:
        SafeError: a step may need one call of the base on one device and two on another, which
            would wait for each other for ever.
    """
    if len(groups_of(rows)) > 1:
        raise SafeError(
            f"some rows of the {what} have pictures and others have none, but devices that share "
            "the base's layers must all call it alike",
            hint="launch without FSDP, or give each row a picture",
        )


@attrs.frozen(eq=False)
class PreparedTraining:
    """A trainer before its first step, and what was made for it.

    Attributes:
        trainer: with its retention and its monitoring.
        alignment: towards the task's answers.
        caches: what is kept of the frozen base.
    """

    trainer: SafeTrainer
    alignment: Alignment
    caches: ActivationCaches


def prepare_training(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    folder: Path,
    progress: WorkProgress,
    data: RecipeData | None = None,
    sharding: Sharding | None = None,
) -> PreparedTraining:
    """The trainer of a recipe, with every sample encoded; the arguments are those of ``train``."""
    if not any(model.modality(name).features for name in model.modalities):
        raise nothing_to_train()
    stores, pad = frame_stores(model, recipe), model.tokenizer.eos_token_id
    data = data or (RecipeData(recipe) if recipe.data else None)
    encoders = model.encoders
    split, prompts = split_data(recipe, examples, data, encoders), PromptEncoder.of(model)
    varied = variations_of(model, recipe)
    tokenized = encode_examples(model, split.examples, stores, progress, prompts, varied)
    alignment = Alignment(model, [word for one in split.examples for word in one.aligned])
    caches = activation_caches(model, recipe, tokenized, pad, prompts)
    held = encode_examples(model, split.held_out, stores, progress, prompts)
    trainer = SafeTrainer(
        model,
        training_arguments(recipe.training, folder, sharded=sharding is not None),
        tokenized,
        recipe.training,
        retention=make_retention(
            model, recipe, split.examples, stores, pad, data, caches, held_out=split.texts
        ),
        alignment=alignment,
        caches=caches,
        pad=pad,
        monitoring=make_monitoring(model, recipe, split, held, stores, folder.parent, progress),
        weights=data.weights if data else None,
    )
    trainer.remove_callback(PrinterCallback)
    gates = {name: spec.gate for name, spec in recipe.modalities.items()}
    trainer.add_callback(GateSchedule(model, gates))
    trainer.add_callback(ProgressReport(progress))
    for note in caches.notes:
        progress.console.print(note)
    return PreparedTraining(trainer, alignment, caches)


def _finish_stopped(monitoring: MonitoringState, checkpoint: Path) -> Log:
    """Finish a run again whose training the monitor had stopped."""
    monitoring.finish()
    return _loss_rows(TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)))


def _loss_rows(state: TrainerState) -> Log:
    return [row for row in state.log_history if "loss" in row]


@contextmanager
def _memory_saving(model: SafeModel, recipe: Recipe, sharding: Sharding | None) -> Iterator[None]:
    """Within the block, layers are recomputed in the backward pass and sharded, if asked for."""
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    handle = shard_layers(model, sharding, distributed.device()) if sharding else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        model.gradient_checkpointing_disable()
