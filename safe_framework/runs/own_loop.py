"""What a recipe's run does before its first step, done for a training loop of one's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from safe_framework.config.schema import Recipe
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import on_device
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import DataError
from safe_framework.runs.options import TRAINING_OPTIONS, check_call, recipe_for
from safe_framework.training import train as stage_a
from safe_framework.training.alignment import prepare_projectors
from safe_framework.training.compute.forward import PlainForward
from safe_framework.training.distributed import WHOLE_STEP
from safe_framework.training.optimizer import make_optimizer
from safe_framework.training.trainer import SCHEDULES
from safe_framework.utils.console import plain_console
from safe_framework.utils.progress import WorkProgress

_RUNS_ONLY = ("monitor", "curriculum", "stage_b", "evaluation", "gate")
OPTIONS = tuple(name for name in TRAINING_OPTIONS if name not in _RUNS_ONLY)
"""What ``prepare_training`` takes beside data."""


class Batch(dict[str, Tensor]):
    """The inputs of one step's call, ``model(**batch)``, with labels.

    Attributes:
        words: that alignment draws each row's samples to.
    """

    words: tuple[str, ...] = ()


class OwnLoop:
    """The parts of a recipe's step, for a loop of one's own; of one process.

    Args:
        model: its projectors have seen their training frames and are aligned.
        recipe: what was asked for.
        ready: a run before its first step.
        folder: of what retention methods stored; it is removed with this object.

    Attributes:
        model: as given.
        recipe: as given.
    """

    def __init__(
        self,
        model: SafeModel,
        recipe: Recipe,
        ready: stage_a.PreparedTraining,
        folder: Path,
    ) -> None:
        self.model, self.recipe = model, recipe
        self._trainer, self._alignment = ready.trainer, ready.alignment
        finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._forward = PlainForward(model)

    @property
    def batches(self) -> Iterator[Batch]:
        """A batch for each of ``max_steps``, its rows in the order of a recipe's run.

        Raises:
            DataError: a step has rows with pictures and rows without, or classes that are read at
                tokens, which one plain call does not serve.
        """
        size = self.recipe.training.batch_size
        rows: Any = self._trainer.train_dataset
        # A loader, as a run has one, which draws a seed before its first batch: so dropout and
        # noise draw here what they draw in a run.
        loader = DataLoader(rows, size, collate_fn=self._trainer.data_collator)
        for step in loader:
            calls = step["calls"]
            if len(calls) > 1 or "class_target" in calls[0]:
                raise DataError(
                    "a step of these rows is more than one plain call of the model",
                    hint="train with `safe_framework.train`; or give every row a picture or none, "
                    'and read classes as answers: read_at="answer"',
                )
            held = {key: one for key, one in calls[0].items() if isinstance(one, Tensor)}
            batch = Batch(on_device(held, self.model.device))
            batch.words = tuple(calls[0]["answers"])
            yield batch

    def retention_loss(self, step: int) -> Tensor:
        """The weighted loss of all retention methods at a step, counted from 0; 0 without any."""
        retention, device = self._trainer.retention, self.model.device
        if retention is None:
            return torch.zeros((), device=device)
        terms = list(retention.terms(step, device, WHOLE_STEP))
        found = self._forward.predictions([term.call for term in terms])
        losses = [term.loss(one) for term, one in zip(terms, found, strict=True)]
        return sum(losses, retention.parameter_loss(device, WHOLE_STEP))

    def alignment_loss(self, batch: Batch) -> Tensor:
        """The loss that draws a batch's tokens to their answers, times ``align_weight``."""
        found = self._alignment.batch_loss(self.model, batch, batch.words)
        return self.recipe.training.align_weight * found

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW with the rates and decays of the options; retention methods may constrain it."""
        return make_optimizer(self.model, self.recipe.training, self._trainer.retention)

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """The warm-up and the fall of the rates, to be stepped after the optimizer."""
        from transformers import get_scheduler

        spec = self.recipe.training
        found: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
            SCHEDULES[spec.schedule], optimizer, spec.warmup_steps, spec.max_steps
        )
        return found

    @cached_property
    def parameters(self) -> list[Tensor]:
        """What is trained, for clipping."""
        return list(self.model.trainable_parameters().values())


def prepare_training(
    model: SafeModel,
    train: Any,
    *,
    retention: Any = None,
    foreign: Any = None,
    quiet: bool = True,
    **options: Any,
) -> OwnLoop:
    """Do all that a recipe's run does before its first step, for a loop of one's own.

    Samples are encoded, each projector sees its training frames (``Projector.fit``) and is aligned
    with the answers for ``align_steps``, and retention methods see the base's texts (the null
    space, Fisher's information). From here on the model asks questions in the prompt of the
    options, and ``model.recipe()`` says them.

    Args:
        model: with the modalities to train.
        train: rows of the task, as ``safe_framework.train`` takes them.
        retention: text of the base's own domain, distilled on unless ``regularizers`` says
            otherwise.
        foreign: samples from outside the task, as irrelevant ones.
        quiet: print nothing.
        **options: as ``safe_framework.train`` takes them, but for the tables of whole runs.

    Raises:
        KeywordError: there is no such option.
        RecipeError: an option is of a wrong type or out of its range.
        DataError: rows are missing or wrong.
        SafeError: the model has no modality.
    """
    check_call(model, options, OPTIONS, "safe_framework.prepare_training")
    sources = {"train": train, "retention": retention, "foreign": foreign}
    # Calls are the caller's own, so nothing is kept for them but frames.
    given = {"speedups": "off", "cache": ["frames"], **options}
    recipe, memory = recipe_for(model, sources, given, "safe_framework.prepare_training")
    model.adopt(recipe)
    folder = Path(mkdtemp(prefix="safe-framework-"))
    place = folder / "checkpoints"
    with WorkProgress(plain_console(quiet=quiet)).showing() as progress:
        data = RecipeData(recipe, progress, memory)
        examples = data.examples("train", model.encoders)
        ready = stage_a.prepare_training(model, recipe, examples, place, progress, data)
        prepare_projectors(model, recipe, ready.trainer.examples, ready.alignment, progress)
        if ready.trainer.retention is not None:
            ready.trainer.retention.begin(place, resumed=False, progress=progress)
    model.eval()
    return OwnLoop(model, recipe, ready, folder)
