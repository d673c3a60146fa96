"""Stage A: a recipe's data through the frozen encoders once, then the trainer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from safe_framework._recipe import Recipe
from safe_framework.adapter import adapter_tensors
from safe_framework.assembly import regularizers
from safe_framework.checkpoints.location import cache_folder
from safe_framework.data.examples import Example
from safe_framework.data.frames import FrameStore
from safe_framework.data.recipe_data import RecipeData
from safe_framework.data.unencoded import Row, UnencodedSamples
from safe_framework.errors import DataError
from safe_framework.model import SafeModel
from safe_framework.progress import WorkProgress
from safe_framework.shapes import Sample
from safe_framework.training import processes
from safe_framework.training.align import Alignment
from safe_framework.training.batches import (
    AnswerCollator,
    TokenizedExample,
    marked_ids,
    tokenize,
)
from safe_framework.training.caches import Caches
from safe_framework.training.capture import on_device
from safe_framework.training.checkpoints import latest_complete
from safe_framework.training.classes import Classes
from safe_framework.training.monitor.watch import Watch, watch_of
from safe_framework.training.plan import plan_of
from safe_framework.training.report import ProgressReport
from safe_framework.training.retention import (
    CounterfactualRetention,
    Stores,
    Weighted,
    distractor_pools,
)
from safe_framework.training.schedule import GateSchedule
from safe_framework.training.sharding import Sharding, shard_layers
from safe_framework.training.start import prepare_projectors
from safe_framework.training.trainer import SafeTrainer, arguments

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
        folder: where checkpoints go; what the monitor keeps goes beside it.
        progress: the bars.
        resume: go on from the newest whole checkpoint in ``folder``.
        data: what the recipe names, where some of it has been read already.
        sharding: how devices share the base's layers; None leaves them whole.

    Returns:
        What was logged: one row for each logging step, from the run's first step on.
    """
    args = arguments(recipe.training, folder)
    stores, pad = frame_stores(model, recipe), model.tokenizer.eos_token_id
    data = data or (RecipeData(recipe) if recipe.data else None)
    plan = plan_of(
        recipe, examples, data, {name: model.modality(name).encoder for name in model.modalities}
    )
    tokenized = encode_examples(model, plan.examples, stores, progress)
    alignment = Alignment(model, [example.answer for example in plan.examples])
    caches = caches_of(model, recipe, tokenized, pad)
    retention = retention_of(
        model, recipe, plan.examples, stores, pad, data, caches, held_out=plan.texts
    )
    held = encode_examples(model, plan.held, stores, progress)
    watch = watch_of(model, recipe, plan, held, stores, folder.parent, progress)
    trainer = SafeTrainer(
        model,
        args,
        tokenized,
        recipe.training,
        retention=retention,
        alignment=alignment,
        caches=caches,
        pad=pad,
        sharded=sharding is not None,
        watch=watch,
        weights=data.weights if data else None,
    )
    trainer.remove_callback(PrinterCallback)
    gates = {name: spec.gate for name, spec in recipe.modalities.items()}
    trainer.add_callback(GateSchedule(model, gates))
    trainer.add_callback(ProgressReport(progress))
    with processes.first_before_others():
        checkpoint = latest_complete(folder) if resume else None
    watch.begin(checkpoint)
    if checkpoint is None:
        prepare_projectors(model, recipe, tokenized, alignment, progress)
        processes.agree(adapter_tensors(model).values())
        processes.seed_apart(recipe.training.seed)
    elif watch.stopped:
        caches.close()
        return _stopped(watch, checkpoint)
    if retention is not None:
        with processes.first_before_others():
            retention.begin(folder, resumed=checkpoint is not None, progress=progress)
    for note in caches.notes:
        progress.console.print(note, highlight=False)
    with processes.first_before_others():
        trainer.warm(progress)
    alignment.to(args.device)  # where devices share a base, it is prepared on the CPU
    try:
        with _as_asked(model, recipe, sharding):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        caches.close()
        model.eval()
    watch.finish()
    return _losses(trainer.state)


def _stopped(watch: Watch, checkpoint: Path) -> Log:
    """End a run again whose training the monitor had stopped."""
    watch.finish()
    return _losses(TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)))


def _losses(state: TrainerState) -> Log:
    return [row for row in state.log_history if "loss" in row]


@contextmanager
def _as_asked(model: SafeModel, recipe: Recipe, sharding: Sharding | None) -> Iterator[None]:
    """Within the block, layers are computed again in the backward pass, and shared out."""
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    handle = shard_layers(model, sharding, processes.device()) if sharding else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        model.gradient_checkpointing_disable()


def frame_stores(model: SafeModel, recipe: Recipe) -> Stores:
    """Where each modality's frames are kept; its samples, if its encoder trains."""
    found: dict[str, FrameStore | UnencodedSamples] = {}
    for name, spec in recipe.modalities.items():
        modality, folder = model.modality(name), cache_folder() / "frames"
        if modality.encoder_trains:
            found[name] = UnencodedSamples(modality)
        else:
            found[name] = FrameStore(modality, folder, spec.encoder.options)
    return found


def caches_of(
    model: SafeModel, recipe: Recipe, examples: Sequence[TokenizedExample], pad: int
) -> Caches:
    """What a recipe lets training keep of the frozen base."""
    dims = {name: model.modality(name).encoder.dim for name in model.modalities}
    batch = AnswerCollator(dims, pad)([e for e in examples if e.frames][:2] or examples[:2])
    Classes.taken(batch)
    given = {key: batch[key] for key in batch if key not in ("labels", "answers")}
    spec = recipe.training
    return Caches(model, spec.cache, on_device(given, model.device), pad, spec.cache_gib * 2**30)


def encode_examples(
    model: SafeModel,
    examples: Sequence[Example],
    stores: Stores,
    progress: WorkProgress,
) -> list[TokenizedExample]:
    """Token ids and frames of every example."""
    frames: list[dict[str, Row]] = [{} for _ in examples]
    for name, store in stores.items():
        having = [i for i, example in enumerate(examples) if name in example.samples]
        samples = [examples[i].samples[name] for i in having]
        places = [examples[i].place for i in having]
        encoded: Sequence[Row] = processes.shared_frames(store, samples, progress, places)
        for i, one in zip(having, encoded, strict=True):
            frames[i][name] = one
    markers = model.processor.markers
    return [tokenize(model.tokenizer, e, f, markers) for e, f in zip(examples, frames, strict=True)]


def retention_of(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    stores: Stores,
    pad: int,
    data: RecipeData | None = None,
    caches: Caches | None = None,
    *,
    held_out: Collection[str] = (),
) -> CounterfactualRetention | None:
    """The retention part of a recipe's loss, without the texts ``held_out``; None if it has none.

    Raises:
        DataError: its methods want texts or foreign samples that the recipe does not name.
    """
    methods = [
        Weighted(weight, method, spec.options)
        for (weight, method), spec in zip(regularizers(recipe), recipe.retention, strict=True)
    ]
    if not methods:
        return None
    wanted = {kind for entry in methods for kind in entry.method.counterfactual}
    held = data or (RecipeData(recipe) if recipe.data else None)
    if wanted and (held is None or "retention" not in held.sources):
        raise DataError(
            "[[retention]] needs text of the base's own domain",
            hint='add `retention = "texts.jsonl"` to [data]',
        )
    samples = {
        name: [e.samples[name] for e in examples if name in e.samples] for name in model.modalities
    }
    spec, markers, names = recipe.training, model.processor.markers, list(model.modalities)
    texts = held.texts("retention") if wanted and held else []
    texts = [text for text in texts if text not in held_out]
    foreign = _foreign(model, held) if "foreign" in wanted and held else {}
    return CounterfactualRetention(
        model,
        methods,
        [marked_ids(model.tokenizer, text, (), markers) for text in texts],
        distractor_pools(sorted(wanted), samples, stores, spec.seed, foreign),
        kinds=[k for e in methods if e.method.every_step for k in e.method.counterfactual],
        batch_size=spec.retention_batch_size,
        seed=spec.seed,
        pad=pad,
        marked=[marked_ids(model.tokenizer, text, names, markers) for text in texts],
        caches=caches,
        grouped=spec.group_by_length,
    )


def _foreign(model: SafeModel, data: RecipeData) -> dict[str, list[Sample]]:
    if "foreign" not in data.sources:
        return {}
    return {
        name: data.samples("foreign", name, model.modality(name).encoder)
        for name in model.modalities
    }
