"""The training loop that somebody would write without caches: everything runs at every step.

The same losses on the same batches as ours, in plain PyTorch on ``model(**batch)``: samples go
through the encoder, the base runs once more as its own teacher, and logits are made everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.config.schema import Recipe
from safe_framework.core.attend import whole_text_columns
from safe_framework.core.model import SafeModel
from safe_framework.core.padding import attention_mask, pad_right
from safe_framework.data.distractors import distractor
from safe_framework.data.examples import Example
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import IGNORED, Frames
from safe_framework.training.alignment import Alignment
from safe_framework.training.batches import TokenizedExample
from safe_framework.training.optimizer import parameter_groups
from safe_framework.training.sampling import balanced_order, generator, shuffled_slice

MODALITY = "audio"


class PlainLoop:
    """Trains a recipe's modality without keeping anything.

    Args:
        model: built from the recipe, its projector prepared as ours is.
        recipe: `one-question`, perhaps with other fused layers.
        examples: of the task.
        tokenized: the same, tokenized as ours are.
        alignment: the loss that draws tokens to their answers.
        texts: token ids of the retention texts.
        foreign: samples that are not of the task.
    """

    def __init__(
        self,
        model: SafeModel,
        recipe: Recipe,
        examples: Sequence[Example],
        tokenized: Sequence[TokenizedExample],
        alignment: Alignment,
        texts: Sequence[Sequence[int]],
        foreign: Sequence[Sample],
    ) -> None:
        self.model, self.recipe, self.texts, self.foreign = model, recipe, texts, foreign
        self.samples = [example.samples[MODALITY] for example in examples]
        self.tokenized, self.alignment = tokenized, alignment
        self.pad = model.tokenizer.eos_token_id
        spec, method = recipe.training, recipe.retention[0]
        self.kinds: Sequence[str] = method.options["counterfactual"]
        self.temperature, self.weight = method.options["temperature"], method.weight
        count = spec.max_steps * spec.batch_size
        self.order = balanced_order(spec.seed, [one.text for one in tokenized], count)
        groups = parameter_groups(
            model, spec.projector_learning_rate, spec.fusion_learning_rate, spec.weight_decay
        )
        self.optimizer = torch.optim.AdamW(groups)
        self.schedule = _schedule(self.optimizer, spec.warmup_steps, spec.max_steps)

    def steps(self) -> Iterator[int]:
        """Take one step at a time."""
        spec = self.recipe.training
        for step in range(spec.max_steps):
            self.model.train()
            chosen = self.order[step * spec.batch_size : (step + 1) * spec.batch_size]
            loss = self._task(chosen) + self.weight * self._retention(step)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
            nn.utils.clip_grad_norm_(self.model.trainable_parameters().values(), spec.max_grad_norm)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            yield step + 1

    def _task(self, chosen: Sequence[int]) -> Tensor:
        rows = [self.tokenized[i] for i in chosen]
        ids = [[*row.prompt, *row.answer] for row in rows]
        labels = [[*[IGNORED] * len(row.prompt), *row.answer] for row in rows]
        frames = self.model.encode(MODALITY, [self.samples[i] for i in chosen])
        batch = self._batch(ids, frames)
        wanted = pad_right(labels, IGNORED).to(self.model.device)
        loss: Tensor = self.model(**batch, labels=wanted).loss
        tokens = self.model.modality(MODALITY).projector(frames)
        answers = self.alignment.indices([row.text for row in rows])
        return loss + self.recipe.training.align_weight * self.alignment.loss(tokens, answers)

    def _retention(self, step: int) -> Tensor:
        size = self.recipe.training.retention_batch_size
        seed = self.recipe.training.seed
        chosen = shuffled_slice(seed, step * size, size, len(self.texts))
        ids, draw = [self.texts[i] for i in chosen], generator(seed, step, 1)
        kinds = [self.kinds[(step * size + row) % len(self.kinds)] for row in range(size)]
        pools = {kind: self.foreign if kind == "foreign" else self.samples for kind in kinds}
        samples = [distractor(kind, pools[kind], draw) for kind in kinds]
        words = pad_right(ids, self.pad).to(self.model.device)
        mask = attention_mask(ids).bool().to(self.model.device)
        with torch.no_grad(), self.model.off():
            wanted = self.model(input_ids=words, attention_mask=mask).logits
        frames = self.model.encode(MODALITY, samples)
        batch = self._batch(ids, frames)
        batch |= whole_text_columns(self.model.attends, batch)
        logits = self.model(**batch).logits
        ours = (logits[mask] / self.temperature).log_softmax(-1)
        base = (wanted[mask] / self.temperature).log_softmax(-1)
        divergence = nn.functional.kl_div(ours, base, log_target=True, reduction="batchmean")
        return divergence * self.temperature**2

    def _batch(self, ids: Sequence[Sequence[int]], frames: Frames) -> dict[str, Any]:
        device = self.model.device
        return {
            "input_ids": pad_right(ids, self.pad).to(device),
            "attention_mask": attention_mask(ids).to(device),
            f"{MODALITY}__present": torch.ones(len(ids), dtype=torch.bool, device=device),
            f"{MODALITY}__frames": frames.values,
            f"{MODALITY}__frames_mask": frames.mask,
        }


def _schedule(
    optimizer: torch.optim.Optimizer, warmup: int, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    from transformers import get_cosine_schedule_with_warmup

    found: torch.optim.lr_scheduler.LRScheduler = get_cosine_schedule_with_warmup(
        optimizer, warmup, steps
    )
    return found
