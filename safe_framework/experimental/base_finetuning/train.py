"""Stage B: after Stage A, the base itself is trained beside its senses, and defended."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console
from transformers import PrinterCallback

from safe_framework.config.plugins import regularizers
from safe_framework.config.schema import Recipe, StageBSpec, TrainingSpec
from safe_framework.core.adapter import CONFIG, WEIGHTS, load_tensors, read_config
from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import AdapterError, DataError, SafeError
from safe_framework.evaluation.base_drift import BaseChanged, for_the_adapter, sentence
from safe_framework.experimental.base_finetuning.attach import change_base
from safe_framework.experimental.base_finetuning.replay import (
    FrozenTeacher,
    Replay,
    StageBRetention,
)
from safe_framework.interfaces import registry
from safe_framework.training import distributed
from safe_framework.training.batches import token_ids
from safe_framework.training.callbacks import ProgressReport
from safe_framework.training.compute.activation_cache import Caches
from safe_framework.training.distributed import Sharding
from safe_framework.training.retention.counterfactual import Stores
from safe_framework.training.retention.teacher import Teacher
from safe_framework.training.sampling import TextOrder
from safe_framework.training.setup import (
    activation_caches,
    encode_examples,
    frame_stores,
    make_retention,
)
from safe_framework.training.train import Log, train
from safe_framework.training.trainer import SafeTrainer, latest_complete, training_arguments
from safe_framework.utils.progress import WorkProgress

LABEL = "stage B"
FOLDER = "stage_b"
"""Where its checkpoints lie, in the folder of Stage A's."""
_APART = 7919
"""Added to the seed, so that a step replays other texts than it puts beside samples."""


def train_stage_b(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    folder: Path,
    *,
    progress: WorkProgress,
    resume: bool = True,
    data: RecipeData | None = None,
) -> Log:
    """Change a model's base as ``[stage_b]`` says, and train it beside the senses.

    Args:
        model: with trained senses, on a base that was not changed yet.
        recipe: it has ``[stage_b]``.
        examples: of the task.
        folder: of Stage A's checkpoints; those of this stage go to a folder in it.
        progress: the bars.
        resume: go on from the newest whole checkpoint.
        data: what the recipe names, where some of it has been read already.

    Returns:
        What was logged: one row for each logging step, counted from this stage's first.

    Raises:
        SafeError: the base cannot be changed so, or a method cannot defend one that changes.
        DataError: the stage wants texts that the recipe does not name.
    """
    assert recipe.stage_b is not None
    stage, place = recipe.stage_b, folder / FOLDER
    stores = frame_stores(model, recipe)
    tokenized = encode_examples(model, examples, stores, progress)
    spec = _training_of(recipe.training, stage)
    pad = model.tokenizer.eos_token_id
    change = change_base(model, stage, seed=spec.seed)
    caches = activation_caches(model, attrs.evolve(recipe, training=spec), tokenized, pad)
    retention = retention_for(model, recipe, examples, stores, data, caches)
    with change.taking_gradients(model.base), _senses_held(model, stage):
        trainer = SafeTrainer(
            model,
            training_arguments(spec, place),
            tokenized,
            spec,
            retention=retention,  # type: ignore[arg-type]  # it answers all that is asked of one
            caches=caches,
            pad=pad,
            weights=data.weights if data else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressReport(progress, LABEL))
        apart(trainer.create_optimizer(), change.tensors(model.base).values(), stage.learning_rate)
        checkpoint = latest_complete(place) if resume else None
        retention.begin(place, resumed=checkpoint is not None, progress=progress)
        trainer.precompute(progress)
        torch.manual_seed(spec.seed)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.eval()
    return [row for row in trainer.state.log_history if "loss" in row]


def _training_of(training: TrainingSpec, stage: StageBSpec) -> TrainingSpec:
    """``[training]`` as it holds in this stage, with another seed for another order.

    What enters the first fused layer is no longer the same at every step, so it is not kept.
    """
    return attrs.evolve(
        training,
        max_steps=stage.max_steps,
        warmup_steps=stage.warmup_steps,
        align_weight=0.0,
        cache=tuple(kind for kind in training.cache if kind != "prefix"),
        seed=training.seed + 1,
    )


def apart(optimizer: torch.optim.Optimizer, changed: Any, rate: float) -> None:
    """Give the base's parameters a group of their own, without decay, which would be drift."""
    mine = list(changed)
    known = {id(parameter) for parameter in mine}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in known]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    optimizer.add_param_group({"params": mine, "lr": rate, "weight_decay": 0.0})


@contextmanager
def _senses_held(model: SafeModel, stage: StageBSpec) -> Iterator[None]:
    """Within the block, the senses train or stand still, as the recipe says."""
    own = [p for p in model.modalities.parameters() if p.requires_grad]
    for parameter in own:
        parameter.requires_grad_(stage.train_senses)
    try:
        yield
    finally:
        for parameter in own:
            parameter.requires_grad_(True)


def retention_for(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    stores: Stores,
    data: RecipeData | None,
    caches: Caches,
) -> StageBRetention:
    """What defends the base while it changes.

    Raises:
        SafeError: a method of ``[[retention]]`` holds all of the base still.
        DataError: there are no texts to replay.
    """
    assert recipe.stage_b is not None
    methods = stage_b_methods(recipe)
    chosen = attrs.evolve(recipe, retention=recipe.stage_b.retention or recipe.retention)
    pad = model.tokenizer.eos_token_id
    beside = None
    if methods:
        beside = make_retention(model, chosen, examples, stores, pad, data, caches)
    return StageBRetention(model, beside, _replay(model, recipe, data, caches))


def stage_b_methods(recipe: Recipe) -> list[Any]:
    """The methods of retention of this stage, each one that can defend a base which changes.

    Raises:
        SafeError: one cannot.
    """
    methods = [method for _, method in regularizers(recipe, stage_b=True)]
    for method in methods:
        if not method.lets_the_base_change:
            name = type(method).__name__
            raise SafeError(
                f"the retention method `{name}` would hold the base still in stage B",
                hint="name other methods for it in [[stage_b.retention]]",
            )
    return methods


def _replay(
    model: SafeModel,
    recipe: Recipe,
    data: RecipeData | None,
    caches: Caches,
) -> Replay | None:
    stage, spec, pad = recipe.stage_b, recipe.training, model.tokenizer.eos_token_id
    assert stage is not None
    if not stage.replay_weight:
        return None
    texts = (data or RecipeData(recipe)).texts("retention")
    if not texts:
        raise DataError(
            "[stage_b] needs text of the base's own domain, to replay it",
            hint='add `retention = "texts.jsonl"` to [data], or set `replay_weight = 0`',
        )
    rows = [token_ids(model.tokenizer, text, (), model.processor.markers) for text in texts]
    states = caches.retention_texts(rows)
    lengths = [len(row) for row in rows]
    distillation: Any = registry.retention_regularizers.load("distillation")
    return Replay(
        rows,
        FrozenTeacher(model, Teacher(model, pad, states)),
        distillation(),
        stage.replay_weight,
        TextOrder(lengths, spec.retention_batch_size, spec.seed + _APART, spec.group_by_length),
        states,
        pad,
    )


# Where a run changes the base: after Stage A, or from an adapter that Stage A has left.


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
    if distributed.world_size() > 1:
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
