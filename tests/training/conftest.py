"""A tiny base with the shipped projector and fusion, and a toy encoder of arrays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.interfaces.types import Frames
from safe_framework.training.compute.forward import ForwardPlanner
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    WeightedRegularizer,
    distractor_pools,
)
from safe_framework_plugins.projectors.standard import StandardProjector
from safe_framework_plugins.retention.distillation import DistillationRegularizer
from tests.support.toys import DIM, HIDDEN, PAD, ToyEncoder, llama, lora, tokenizer

ROWS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16], [17, 18, 19]]
KINDS = ("silent", "noise", "shuffled")


class ArrayEncoder(ToyEncoder):
    """The toy encoder, for NumPy arrays."""

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        return super().prepare([torch.as_tensor(sample) for sample in samples])


def model_with_modality(base: nn.Module) -> SafeModel:
    """The base with a fresh modality ``touch``."""
    torch.manual_seed(0)
    model = SafeModel(base, tokenizer())
    model.add_modality(
        "touch",
        encoder=ArrayEncoder(),
        projector=StandardProjector(DIM, HIDDEN, tokens=2, hidden_dim=8, dropout=0.0),
        fusion=lora(model),
    )
    return model


@pytest.fixture
def model() -> SafeModel:
    """A fresh model."""
    return model_with_modality(llama())


@pytest.fixture
def samples() -> list[np.ndarray]:
    """Six samples of three frames."""
    random = np.random.default_rng(0)
    return [random.normal(size=(3, DIM)).astype(np.float32) for _ in range(6)]


@pytest.fixture
def pools(
    model: SafeModel, samples: list[np.ndarray], tmp_path: Path
) -> dict[str, dict[str, list[Frames]]]:
    """Frames of irrelevant samples."""
    stores = {"touch": model.modality("touch").frame_cache(tmp_path)}
    return distractor_pools(KINDS, {"touch": samples}, stores, seed=3)


@pytest.fixture
def retention(
    model: SafeModel, pools: dict[str, dict[str, list[Frames]]]
) -> CounterfactualRetention:
    """Retention by distillation on four texts, two a step."""
    method = WeightedRegularizer(2.0, DistillationRegularizer())
    return CounterfactualRetention(
        model, [method], ROWS, pools, kinds=KINDS, batch_size=2, seed=3, pad=PAD
    )


def loss_of(retention: CounterfactualRetention, step: int) -> Tensor:
    """What a step's texts are worth, and the parameters."""
    terms = list(retention.terms(step, torch.device("cpu")))
    if not terms:
        return retention.parameter_loss(torch.device("cpu"))
    predictions = ForwardPlanner(retention.model, retention.caches).predictions(
        [term.call for term in terms]
    )
    penalties = [term.loss(predicted) for term, predicted in zip(terms, predictions, strict=True)]
    return sum(penalties, retention.parameter_loss(torch.device("cpu")))


def perturb(model: SafeModel) -> None:
    """Give every trainable parameter something learned."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
