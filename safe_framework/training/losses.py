"""The task's loss, with the vocabulary projected only where an answer is scored."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.model import SafeModel
from safe_framework.training.batches import IGNORED
from safe_framework.training.classes import Classes, mean_loss


def answer_loss(model: nn.Module, base: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean next-token cross-entropy over the labelled positions.

    Args:
        model: the SafeModel, possibly wrapped for distributed training.
        base: its base, which says whether it can project only some positions.
        batch: ``input_ids``, ``attention_mask``, ``labels``, modalities, and classes that are
            read at their tokens.
    """
    inputs = dict(batch)
    classes = Classes.taken(inputs)
    targets = inputs.pop("labels")[:, 1:]  # position t predicts token t + 1
    scored = (targets != IGNORED).any(0)
    if classes is not None:
        scored = scored | classes.places[:, :-1].any(0)
    kept = scored.nonzero().flatten()
    logits = logits_at(model, base, inputs, kept)  # (batch, kept, vocabulary)
    wanted = targets[:, kept]
    if classes is not None:
        return mean_loss(logits, wanted, classes, kept)
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED
    )


def logits_at(
    model: nn.Module, base: nn.Module, inputs: Mapping[str, Any], positions: Tensor
) -> Tensor:
    """Logits at chosen positions, (batch, positions, vocabulary)."""
    if keeps_positions(base):
        logits: Tensor = model(**inputs, logits_to_keep=positions, use_cache=False).logits
        return logits
    everywhere: Tensor = model(**inputs).logits
    return everywhere[:, positions]


def keeps_positions(base: nn.Module) -> bool:
    """Whether the base takes ``logits_to_keep``, as most of transformers' models do."""
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def check_finite(loss: Tensor, name: str, step: int) -> Tensor:
    """The loss, if it is a number.

    Raises:
        FloatingPointError: it is NaN or infinite.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the {name} is {loss.item()} at step {step}\n"
            "hint: lower the learning rates in [training]"
        )
    return loss


def trainable_groups(
    model: SafeModel,
    projector_rate: float,
    fusion_rate: float,
    weight_decay: float,
    encoder_rate: float | None = None,
) -> list[dict[str, Any]]:
    """AdamW's parameter groups: projectors, then fusion adapters, then encoders that train.

    Without a rate of their own, the encoders are among the projectors.
    """
    rates = {"fusion": fusion_rate}
    if encoder_rate is not None:
        rates["encoder"] = encoder_rate
    parts: dict[str, list[nn.Parameter]] = {"": [], **{part: [] for part in rates}}
    for name, parameter in model.trainable_parameters().items():
        part = name.split(".")[1]
        parts[part if part in rates else ""].append(parameter)
    return [
        {"params": params, "lr": rates.get(part, projector_rate), "weight_decay": weight_decay}
        for part, params in parts.items()
        if params
    ]
