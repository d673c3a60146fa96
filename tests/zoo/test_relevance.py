"""L9 on types whose layers, caches and pictures differ."""

from __future__ import annotations

import pytest
import torch

from safe_framework.core.relevance import RelevanceHead
from safe_framework.verification.bench import Bench, frozen_state
from safe_framework.verification.certificate import Verdict
from safe_framework.verification.relevance import irrelevant_is_absent
from safe_framework.verification.target import with_made_up_modality
from tests.zoo.examine import train
from tests.zoo.models import tiny

pytestmark = pytest.mark.slow

ALONE = [("causal", "bloom"), ("causal", "qwen2"), ("image_text", "qwen2_vl"), ("seq2seq", "t5")]
"""Types whose last position can be run by itself."""
AGAIN = [
    ("causal", "falcon_h1"),  # attention and a state space side by side
    ("causal", "mamba"),  # no attention at all
    ("causal", "bert-generation"),  # a position sees what comes behind it
    ("image_text", "mllama"),  # pictures beside the text
]
"""Types of which the call begins again."""
APART = [("causal", "mixtral")]
"""Types that compute rows together, so that mixed batches are not asked."""


@pytest.mark.filterwarnings("ignore")  # of transformers, about configs that it made itself
@pytest.mark.parametrize(
    ("task", "model_type"), ALONE + AGAIN + APART, ids=[key for _, key in ALONE + AGAIN + APART]
)
def test_a_closed_row_is_the_bases(task: str, model_type: str) -> None:
    """L9: however the call is decoded, and whichever rows open."""
    torch.manual_seed(0)
    base = tiny(task, model_type)
    model = with_made_up_modality(base.model, example=base.inputs, attend="all")
    train(model)
    name, width = next(iter(model.modalities)), model.stack.hidden_size
    weight = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    layer = model.stack.count - 1
    flat = torch.zeros(width)
    head = RelevanceHead(flat, flat + 1, weight[:1], weight[1:], 0.0, layer=layer, columns=4)
    model.modality(name).attend = "all" if model_type == "bert-generation" else "answer"
    model.set_relevance(name, head)
    with frozen_state(model):
        law = irrelevant_is_absent(Bench.of(model, base.inputs))
    assert law.verdict is Verdict.HOLDS, law.findings
    assert ("computes rows together" in law.detail) == ((task, model_type) in APART)
    assert model._runs_alone == ((task, model_type) in ALONE + APART)
