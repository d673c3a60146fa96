"""AdamW with the rates and decays of a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from safe_framework.config.schema import TrainingSpec
from safe_framework.core.model import SafeModel
from safe_framework.training.retention.counterfactual import CounterfactualRetention


def make_optimizer(
    model: SafeModel, spec: TrainingSpec, retention: CounterfactualRetention | None
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); retention may constrain each step."""
    groups = parameter_groups(
        model,
        spec.projector_learning_rate,
        spec.fusion_learning_rate,
        spec.weight_decay,
        spec.encoder_learning_rate,
    )
    optimizer = torch.optim.AdamW(groups, fused=True)  # one pass over each parameter
    if retention is not None:
        _constrain_after_steps(optimizer, retention)
    return optimizer


def parameter_groups(
    model: SafeModel,
    projector_rate: float,
    fusion_rate: float,
    weight_decay: float,
    encoder_rate: float | None = None,
) -> list[dict[str, Any]]:
    """The optimizer's groups: fusion adapters, encoders, all else, with and without decay.

    Without a rate of their own, encoders that train have the projectors'.

    Matrices decay. Vectors and numbers (biases, norms, gates) do not, nor do the vectors of
    markers, which start as embeddings of the base and not at zero.
    """
    kinds = ("fusion", "segments", "times")  # which start where they do nothing
    rates = dict.fromkeys(kinds, fusion_rate)
    if encoder_rate is not None:
        rates["encoder"] = encoder_rate
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.trainable_parameters().items():
        kind = name.split(".")[1]  # NAME.projector..., NAME.fusion..., NAME.markers...
        rate = rates.get(kind, projector_rate)
        decays = parameter.ndim > 1 and kind != "markers"
        groups.setdefault((rate, weight_decay if decays else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _constrain_after_steps(
    optimizer: torch.optim.Optimizer, retention: CounterfactualRetention
) -> None:
    def constrain(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Let each method change the step that was taken."""
        for entry in retention.methods:
            entry.method.constrain(stepped)

    optimizer.register_step_post_hook(constrain)
