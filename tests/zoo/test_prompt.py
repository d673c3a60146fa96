"""L8 on types whose layers, caches and pictures differ."""

from __future__ import annotations

import pytest
import torch

from safe_framework.verification.bench import Bench, frozen_state
from safe_framework.verification.certificate import Verdict
from safe_framework.verification.prompt import prompt_is_base
from safe_framework.verification.target import with_made_up_modality
from tests.zoo.examine import train
from tests.zoo.models import tiny

pytestmark = pytest.mark.slow

HOLDS = [
    ("causal", "bloom"),
    ("causal", "gemma2"),  # layers that forget
    ("causal", "falcon_h1"),  # attention and a state space side by side
    ("causal", "mamba"),  # no attention at all
    ("image_text", "llava"),
    ("image_text", "qwen2_vl"),
    ("image_text", "mllama"),  # pictures beside the text
    ("seq2seq", "t5"),
]
MIXES = [("causal", "mixtral"), ("causal", "bert-generation")]
"""Types that compute a position from later ones, or rows together."""


def verdict(task: str, model_type: str) -> Verdict:
    """What the certificate says of L8, of a trained modality that acts on answers."""
    torch.manual_seed(0)
    base = tiny(task, model_type)
    model = with_made_up_modality(base.model, example=base.inputs, attend="answer")
    train(model)
    with frozen_state(model):
        return prompt_is_base(Bench.of(model, base.inputs)).verdict


@pytest.mark.filterwarnings("ignore")  # of transformers, about configs that it made itself
@pytest.mark.parametrize(("task", "model_type"), HOLDS, ids=[key for _, key in HOLDS])
def test_the_prompt_is_the_bases(task: str, model_type: str) -> None:
    """L8: hidden states, keys and values of the prompt, however it is read and continued."""
    assert verdict(task, model_type) is Verdict.HOLDS


@pytest.mark.filterwarnings("ignore")  # of transformers, about configs that it made itself
@pytest.mark.parametrize(("task", "model_type"), MIXES, ids=[key for _, key in MIXES])
def test_a_base_that_mixes_positions_cannot_have_it(task: str, model_type: str) -> None:
    """L8 is not asked of a base whose prompt depends on what comes behind it."""
    assert verdict(task, model_type) is Verdict.NOT_APPLICABLE
