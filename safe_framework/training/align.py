"""Alignment: before the base is in the loop, tokens learn to point where their answers lie.

The projector alone is trained so that the mean of a sample's tokens is nearer, by cosine, to the
base's embedding of its own answer than to those of all other training answers. This is the
contrastive objective of CLIP (Radford et al. 2021, arXiv:2103.00020) towards frozen text
embeddings. It costs seconds, since the base does not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework._recipe import TrainingSpec
from safe_framework.data.examples import distinct
from safe_framework.model import SafeModel
from safe_framework.progress import WorkProgress
from safe_framework.shapes import Frames
from safe_framework.training.order import shuffled_slice

LABEL = "aligning the projector"
_TEMPERATURE = 0.1
_BATCH = 64


def align(
    model: SafeModel,
    name: str,
    frames: Frames,
    answers: Sequence[str],
    spec: TrainingSpec,
    progress: WorkProgress,
) -> None:
    """Train modality ``name``'s projector for ``spec.align_steps`` steps.

    Args:
        model: whose base gives the answers' embeddings.
        name: of the modality.
        frames: a row for each sample.
        answers: the answer of each row.
        spec: steps, rate, decay and seed.
        progress: the bar.
    """
    if not spec.align_steps:
        return
    projector = model.modality(name).projector
    candidates = distinct(answers)
    targets = answer_embeddings(model, candidates)  # (candidates, hidden)
    wanted = torch.tensor([candidates.index(answer) for answer in answers])
    optimizer = torch.optim.AdamW(
        [p for p in projector.parameters() if p.requires_grad],
        lr=spec.align_learning_rate,
        weight_decay=spec.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spec.align_steps)
    projector.train()
    for step in range(spec.align_steps):
        rows = torch.tensor(shuffled_slice(spec.seed, step * _BATCH, _BATCH, len(answers)))
        loss = _contrast(projector(_to(frames.rows(rows), model)), targets, wanted[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        optimizer.step()
        schedule.step()
        progress(LABEL, step + 1, spec.align_steps, f"loss {float(loss):.3f}")


@torch.no_grad()
def answer_embeddings(model: SafeModel, answers: Sequence[str]) -> Tensor:
    """Unit vectors towards each answer's mean input embedding, less their common mean."""
    embed: nn.Module = model.base.get_input_embeddings()  # type: ignore[operator]
    means = []
    for answer in answers:
        ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
        means.append(embed(torch.tensor(ids, device=model.device)).float().mean(0))
    stacked = torch.stack(means)  # (answers, hidden)
    centred = stacked - stacked.mean(0) if len(answers) > 1 else stacked
    return nn.functional.normalize(centred, dim=-1)


def _contrast(tokens: Any, targets: Tensor, wanted: Tensor) -> Tensor:
    heard = nn.functional.normalize(tokens.values.float().mean(1), dim=-1)  # (batch, hidden)
    return nn.functional.cross_entropy(heard @ targets.T / _TEMPERATURE, wanted.to(targets.device))


def _to(frames: Frames, model: SafeModel) -> Frames:
    return Frames(frames.values.to(model.device), frames.mask.to(model.device))
