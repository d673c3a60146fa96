"""Train an arm: SAFE by its own trainer, a peer by a plain loop on the same batches in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from accelerate.utils import send_to_device
from peer_arms import PROJECTOR_RATE, Arm
from peer_models import PrefixModel
from peer_retention import PeerRetention, fisher_of, retention_of
from speed_turns import peak_gib, spent
from torch import nn
from transformers import TrainerCallback, get_cosine_schedule_with_warmup

from safe_framework.config.schema import Recipe
from safe_framework.core.build import build
from safe_framework.core.prompt_rows import token_ids
from safe_framework.data.recipe_data import RecipeData
from safe_framework.training import distributed
from safe_framework.training.alignment import Alignment, prepare_projectors
from safe_framework.training.batches import AnswerCollator, TokenizedExample
from safe_framework.training.objective import answer_loss, check_finite
from safe_framework.training.sampling import training_order
from safe_framework.training.setup import encode_examples, frame_stores
from safe_framework.training.train import prepare_training
from safe_framework.utils.progress import WorkProgress


@attrs.frozen(eq=False)
class Trained:
    """A trained arm.

    Attributes:
        model: a ``SafeModel`` or a ``PrefixModel``.
        seconds: of each step, as ``spent`` counts them.
        losses: of each step; of SAFE, which logs now and then, what was logged.
        peak_gib: the process's memory so far.
        penalties: of a peer's retention, at each step.
    """

    model: Any
    seconds: Sequence[float]
    losses: Sequence[float]
    peak_gib: float
    penalties: Sequence[float] = ()


class Clock(TrainerCallback):
    """Takes the time of the trainer's steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start."""
        self.start = spent()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds.append(spent() - self.start)


def train_safe(recipe: Recipe, data: RecipeData, folder: Path, progress: WorkProgress) -> Trained:
    """What ``safe run`` trains from a recipe."""
    model = build(recipe, device=distributed.device())
    examples = data.examples("train", model.encoders)
    ready, clock = prepare_training(model, recipe, examples, folder, progress, data), Clock()
    trainer = ready.trainer
    prepare_projectors(model, recipe, trainer.examples, ready.alignment, progress)
    if trainer.retention is not None:
        trainer.retention.begin(folder, resumed=False, progress=progress)
    trainer.precompute(progress)
    trainer.add_callback(clock)
    try:
        trainer.train()
    finally:
        ready.caches.close()
        model.eval()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return Trained(model, clock.seconds, losses, peak_gib())


def train_peer(
    arm: Arm,
    recipe: Recipe,
    data: RecipeData,
    progress: WorkProgress,
    *,
    rate_factor: float = 1.0,
    ewc_weight: float = 0.0,
) -> Trained:
    """The task's loss and the alignment loss as in SAFE's training, and a peer's own retention.

    The projector starts aligned, as SAFE's does.
    """
    safe = build(recipe, device=distributed.device())
    examples = data.examples("train", safe.encoders)
    stores = frame_stores(safe, recipe)
    tokenized = encode_examples(safe, examples, stores, progress)
    alignment = Alignment(safe, [example.answer for example in examples])
    prepare_projectors(safe, recipe, tokenized, alignment, progress)
    spec = recipe.training
    texts = [token_ids(safe.tokenizer, row.text, (), None) for row in data.texts("retention")]
    fisher = fisher_of(safe.base, texts, spec.seed) if arm.retention == "ewc" else {}
    torch.manual_seed(spec.seed)
    assert arm.base is not None
    model = PrefixModel(safe, arm.base)
    retention = retention_of(arm, model, recipe, data, texts, stores, fisher, ewc_weight)
    loop = PeerLoop(model, arm, recipe, tokenized, alignment, retention, data.weights, rate_factor)
    model.train()
    seconds, losses = [], []
    for step in range(spec.max_steps):
        start = spent()
        losses.append(loop.step(step))
        seconds.append(spent() - start)
        progress("training", step + 1, spec.max_steps, f"loss {losses[-1]:.3f}")
    return Trained(model.eval(), seconds, losses, peak_gib(), loop.penalties)


class PeerLoop:
    """AdamW with warm-up and a cosine, as in the recipe, on the batches of the recipe's order.

    Args:
        model: to train.
        arm: whose rates.
        recipe: whose training.
        examples: of the task.
        alignment: the loss that draws tokens to their answers.
        retention: the second loss; None for none.
        weights: share of each dataset.
        rate_factor: on all rates.
    """

    def __init__(
        self,
        model: PrefixModel,
        arm: Arm,
        recipe: Recipe,
        examples: Sequence[TokenizedExample],
        alignment: Alignment,
        retention: PeerRetention | None,
        weights: Mapping[str, float],
        rate_factor: float = 1.0,
    ) -> None:
        self.model, self.spec, self.examples = model, recipe.training, examples
        self.alignment, self.retention = alignment, retention
        self.penalties: list[float] = []
        spec = self.spec
        dim = model.modality(model.name).encoder.dim
        self.collate = AnswerCollator({model.name: dim}, model.tokenizer.eos_token_id)
        self.order = training_order(
            [example.dataset for example in examples],
            [example.text for example in examples],
            spec.max_steps * spec.batch_size,
            seed=spec.seed,
            balance=spec.balance,
            weights=weights,
        )
        self.optimizer = torch.optim.AdamW(_groups(model, arm, spec.weight_decay, rate_factor))
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, spec.warmup_steps, spec.max_steps
        )

    def step(self, step: int) -> float:
        """Take one step, and return the task's loss."""
        size = self.spec.batch_size
        rows = [self.examples[i] for i in self.order[step * size : (step + 1) * size]]
        batch = self.collate(rows)
        answers = batch.pop("answers")
        batch = send_to_device(batch, self.model.device)
        task = check_finite(answer_loss(self.model, self.model.language, batch), "task loss", step)
        loss = task
        if self.spec.align_weight:
            pulled = self.alignment.batch_loss(self.model.safe, batch, answers)
            loss = loss + self.spec.align_weight * pulled
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        if self.retention is not None:
            self.penalties.append(self.retention.backward(step))
        nn.utils.clip_grad_norm_(self.model.trained().values(), self.spec.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return task.item()


def _groups(model: PrefixModel, arm: Arm, decay: float, factor: float) -> list[dict[str, Any]]:
    """Matrices of the projector decay, as in SAFE's training; LLaVA lets nothing decay."""
    own = [p for p in model.projector.parameters() if p.requires_grad]
    known = {id(p) for p in own}
    rest = [p for p in model.trained().values() if id(p) not in known and p is not model.scale]
    vectors = [model.scale, *(p for p in own if p.ndim < 2)]
    groups = [
        {
            "params": [p for p in own if p.ndim > 1],
            "lr": factor * PROJECTOR_RATE,
            "weight_decay": decay,
        },
        {"params": vectors, "lr": factor * PROJECTOR_RATE, "weight_decay": 0.0},
        {"params": rest, "lr": factor * arm.base_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
