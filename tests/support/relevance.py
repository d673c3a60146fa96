"""Relevance heads of random numbers, for the tests of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import RelevanceHead, relevance_states
from tests.support.toys import HIDDEN, LAYERS, attached


def random_head(
    layer: int = LAYERS - 1, sample: int = 0, seed: int = 1, columns: int = 3, **settings: Any
) -> Any:
    """A head of random numbers on the toys' bases."""
    generator = torch.Generator().manual_seed(seed)
    mean, scale = torch.randn(2, HIDDEN + sample, generator=generator)
    queries, weight = torch.randn(2, 3, HIDDEN, generator=generator)
    settings = {"layer": layer, "columns": columns, **settings}
    heard = torch.randn(sample, generator=generator)
    return RelevanceHead(
        mean, scale.abs() + 0.5, queries, weight, 0.1, sample_weight=heard, **settings
    )


def head_of(model: SafeModel, name: str = "touch") -> RelevanceHead:
    """The head of a modality that has one."""
    head = model.modality(name).relevance
    assert head is not None
    return head


def deciding(base: nn.Module, *names: str, attend: Any = "answer", **head: Any) -> SafeModel:
    """The base with modalities (``touch`` if none is named) that heads decide of."""
    names = names or ("touch",)
    model = attached(base, *names, attend=attend)
    for seed, name in enumerate(names, start=1):
        model.set_relevance(name, random_head(seed=seed, **head))
    model.set_gate("auto")
    return model


def open_rows(model: SafeModel, batch: dict[str, Tensor], count: int, name: str = "touch") -> None:
    """Move a head's threshold so that it opens on ``count`` rows of the batch."""
    head = head_of(model, name)
    scores = (
        head(relevance_states(model, batch, head.layer, head.columns)).sort(descending=True).values
    )
    edges = [scores[0] + 1, *((scores[:-1] + scores[1:]) / 2), scores[-1] - 1]
    head.threshold = float(edges[count])
