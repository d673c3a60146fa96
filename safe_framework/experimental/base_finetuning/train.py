"""Base fine-tuning (Stage B): after the modalities, the base itself is trained, and defended.

A run gets here where its recipe has a table ``[stage_b]``: after Stage A, or from an adapter that
Stage A has left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import PrinterCallback

from safe_framework.config.plugins import regularizers
from safe_framework.config.schema import Recipe, StageBSpec, TrainingSpec
from safe_framework.core.adapter import CONFIG, WEIGHTS, read_config
from safe_framework.core.build import load_tensors
from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import AdapterError, DataError, SafeError
from safe_framework.experimental.base_finetuning.attach import change_base
from safe_framework.experimental.base_finetuning.replay import (
    BaseFinetuningRetention,
    OriginalBaseTeacher,
    Replay,
)
from safe_framework.interfaces import registry
from safe_framework.training import distributed
from safe_framework.training.callbacks import ProgressReport
from safe_framework.training.compute.activation_cache import ActivationCaches
from safe_framework.training.retention.counterfactual import SampleStores
from safe_framework.training.retention.teacher import Teacher
from safe_framework.training.sampling import TextOrder
from safe_framework.training.setup import (
    activation_caches,
    encode_examples,
    frame_stores,
    make_retention,
    whole_row,
)
from safe_framework.training.train import Log, train
from safe_framework.training.trainer import SafeTrainer, latest_complete, training_arguments
from safe_framework.utils.progress import WorkProgress

LABEL = "stage B"
FOLDER = "stage_b"
"""Folder of its checkpoints, in that of Stage A's."""
_REPLAY_SEED_OFFSET = 7919
"""Added to the seed, so that a step replays other texts than it combines with distractors."""


def finetune_base(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    folder: Path,
    *,
    progress: WorkProgress,
    resume: bool = True,
    data: RecipeData | None = None,
) -> Log:
    """Change a model's base as ``[stage_b]`` says, and train it with the modalities.

    Args:
        model: with trained modalities, on a base that was not changed yet.
        recipe: it has ``[stage_b]``.
        examples: of the task.
        folder: of Stage A's checkpoints; those of this stage go to a folder in it.
        progress: the bars.
        resume: resume from the newest whole checkpoint.
        data: what the recipe names, where some of it has been read already.

    Returns:
        What was logged: one row for each logging step, counted from this stage's first.

    Raises:
        SafeError: the base cannot be changed so, or a method cannot defend one that changes.
        DataError: the stage wants texts that the recipe does not name.
    """
    assert recipe.stage_b is not None
    stage, checkpoints = recipe.stage_b, folder / FOLDER
    stores = frame_stores(model, recipe)
    tokenized = encode_examples(model, examples, stores, progress)
    spec = _training_spec(recipe.training, stage)
    pad = model.tokenizer.eos_token_id
    change = change_base(model, stage, seed=spec.seed)
    caches = activation_caches(model, attrs.evolve(recipe, training=spec), tokenized, pad)
    retention = make_stage_retention(model, recipe, examples, stores, data, caches)
    with change.taking_gradients(model.base), _modalities_training(model, stage):
        trainer = SafeTrainer(
            model,
            training_arguments(spec, checkpoints),
            tokenized,
            spec,
            retention=retention,  # type: ignore[arg-type]  # it has every method that the trainer calls
            caches=caches,
            pad=pad,
            weights=data.weights if data else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressReport(progress, LABEL))
        separate_group(
            trainer.create_optimizer(), change.tensors(model.base).values(), stage.learning_rate
        )
        checkpoint = latest_complete(checkpoints) if resume else None
        retention.begin(checkpoints, resumed=checkpoint is not None, progress=progress)
        trainer.precompute(progress)
        torch.manual_seed(spec.seed)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.eval()
    return [row for row in trainer.state.log_history if "loss" in row]


def _training_spec(training: TrainingSpec, stage: StageBSpec) -> TrainingSpec:
    """``[training]`` as it applies in this stage, with another seed for another order.

    What enters the first fused layer is no longer the same at every step, so it is not stored.
    """
    return attrs.evolve(
        training,
        max_steps=stage.max_steps,
        warmup_steps=stage.warmup_steps,
        align_weight=0.0,
        cache=tuple(kind for kind in training.cache if kind != "prefix"),
        seed=training.seed + 1,
    )


def separate_group(optimizer: torch.optim.Optimizer, changed: Any, rate: float) -> None:
    """Put the base's parameters into a group of their own, without decay, which would be drift."""
    parameters = list(changed)
    known = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in known]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    optimizer.add_param_group({"params": parameters, "lr": rate, "weight_decay": 0.0})


@contextmanager
def _modalities_training(model: SafeModel, stage: StageBSpec) -> Iterator[None]:
    """Within the block, the modalities train or stay frozen, as the recipe says."""
    own = [p for p in model.modalities.parameters() if p.requires_grad]
    for parameter in own:
        parameter.requires_grad_(stage.train_senses)
    try:
        yield
    finally:
        for parameter in own:
            parameter.requires_grad_(True)


def make_stage_retention(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    stores: SampleStores,
    data: RecipeData | None,
    caches: ActivationCaches,
) -> BaseFinetuningRetention:
    """The losses that defend the base while it changes.

    Raises:
        SafeError: a method of ``[[retention]]`` needs a frozen base.
        DataError: there are no texts to replay.
    """
    assert recipe.stage_b is not None
    methods = retention_methods(recipe)
    chosen = attrs.evolve(recipe, retention=recipe.stage_b.retention or recipe.retention)
    pad = model.tokenizer.eos_token_id
    counterfactual = None
    if methods:
        counterfactual = make_retention(model, chosen, examples, stores, pad, data, caches)
    return BaseFinetuningRetention(model, counterfactual, _replay(model, recipe, data, caches))


def retention_methods(recipe: Recipe) -> list[Any]:
    """The retention methods of this stage, all of which can defend a base that changes.

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
    caches: ActivationCaches,
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
    rows = [whole_row(caches.prompts, row) for row in texts]
    states = caches.retention_texts(rows)
    lengths = [row.words for row in rows]
    distillation: Any = registry.retention_regularizers.load("distillation")
    return Replay(
        rows,
        OriginalBaseTeacher(model, Teacher(model, pad, states, caches.prompts)),
        distillation(),
        stage.replay_weight,
        TextOrder(
            lengths,
            spec.retention_batch_size,
            spec.seed + _REPLAY_SEED_OFFSET,
            spec.group_by_length,
        ),
        states,
        pad,
    )


def train_stages(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    folder: Path,
    *,
    progress: WorkProgress,
    resume: bool = True,
    data: RecipeData | None = None,
) -> Log:
    """Train Stage A, or load its adapter, then Stage B; logged steps are counted through both.

    Args:
        model: built from the recipe.
        recipe: it has ``[stage_b]``.
        examples: of the task.
        folder: where checkpoints go.
        progress: the bars.
        resume: resume from the newest whole checkpoints.
        data: what the recipe names, where some of it has been read already.

    Raises:
        AdapterError: the adapter to start from does not fit, or its base was changed.
        SafeError: several processes are to change a base.
    """
    assert recipe.stage_b is not None
    if distributed.world_size() > 1:
        raise SafeError(
            "stage B changes the base in one process only",
            hint="leave [stage_b] out of what several processes train, and run it alone afterwards "
            "with `start`",
        )
    retention_methods(recipe)  # wrong ones are refused before Stage A is trained
    if recipe.stage_b.start is None:
        alone = attrs.evolve(recipe, stage_b=None)
        log = train(model, alone, examples, folder, progress=progress, resume=resume, data=data)
    else:
        load_start(model, recipe.folder / recipe.stage_b.start)
        log = []
    done = recipe.training.max_steps if recipe.stage_b.start is None else 0
    more = finetune_base(
        model, recipe, examples, folder, progress=progress, resume=resume, data=data
    )
    return [*log, *({**row, "step": row["step"] + done} for row in more)]


def load_start(model: SafeModel, folder: Path) -> None:
    """Load an adapter of Stage A into a model.

    Raises:
        AdapterError: it does not fit, or its base was changed.
    """
    if read_config(folder).base_change is not None:
        raise AdapterError(
            f"`{folder}` has been in stage B already: its base was changed",
            hint="let `start` of [stage_b] name an adapter of stage A",
        )
    load_tensors(model, folder)


def start_digest(folder: Path) -> str:
    """By which the adapter in ``folder``, from which a run starts, is recognised."""
    content = b"".join((folder / name).read_bytes() for name in (CONFIG, WEIGHTS))
    return hashlib.sha256(content).hexdigest()
