"""Texts beside samples begin where these first act, and what is measured stays what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example
from safe_framework.evaluation import retention as measured
from safe_framework.evaluation import shared_layers
from safe_framework.evaluation.answers import eval_mode
from safe_framework.evaluation.retention import retention
from tests.evaluation.conftest import (
    HIDDEN,
    WORDS,
    AddTokens,
    LinearProjector,
    PairEncoder,
    tiny_tokenizer,
)


class Later(AddTokens):
    """Acts from the second layer on."""

    layers = (1, 2)


def hearing(attend: Any = "all", later: bool = True, **options: Any) -> SafeModel:
    """A tiny base that can touch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
        bos_token_id=None, initializer_range=0.5,
    )  # fmt: skip
    model = SafeModel(LlamaForCausalLM(config), tiny_tokenizer(), **options)
    fusion = Later() if later else AddTokens()
    parts: Any = {"encoder": PairEncoder(), "projector": LinearProjector(), "fusion": fusion}
    model.add_modality("touch", attend=attend, **parts)
    model.set_gate(0.5)
    return model


def kept_by(
    model: SafeModel, texts: list[str], examples: list[Example]
) -> tuple[measured.Retention, int]:
    """What is kept at gate 1, and how often the base's first layer was run."""
    runs = []
    first = model.stack.of(model.base)[0].mlp
    handle = first.register_forward_hook(lambda *_: runs.append(1))
    with eval_mode(model), torch.no_grad():
        found = retention(model, "touch", texts, examples, resamples=20)
    handle.remove()
    return found, len(runs)


@pytest.fixture
def many(texts: list[str]) -> list[str]:
    """Enough texts for several calls."""
    drawn = np.random.default_rng(0)
    return texts + [" ".join(drawn.choice(WORDS[3:], 2 + n % 9)) for n in range(60)]


@pytest.mark.parametrize("attend", ["all", "answer"])
def test_shared_layers_change_no_bit(
    many: list[str], examples: list[Example], monkeypatch: pytest.MonkeyPatch, attend: Any
) -> None:
    """Law: numbers are those of whole calls, though shared layers run less often."""
    found, runs = kept_by(hearing(attend), many, examples)
    monkeypatch.setattr(shared_layers, "_may_begin_there", lambda model: False)
    whole, all_runs = kept_by(hearing(attend), many, examples)
    assert found == whole
    assert found.overall.kl.value > 0
    assert runs < 0.7 * all_runs


@pytest.mark.parametrize("model", [hearing(later=False), hearing(split_rows=True)])
def test_where_nothing_is_shared_calls_are_whole(
    texts: list[str], examples: list[Example], model: SafeModel
) -> None:
    """Law: a sense that acts from the first layer on, and rows that run apart, share nothing."""
    _, runs = kept_by(model, texts, examples)
    assert runs >= 2 + 3 + 1 + 1  # base and model, three samples; base and model on the examples


def test_layers_are_left_as_they_were(texts: list[str], examples: list[Example]) -> None:
    """Law: behind a measurement the base's layers have what they had."""
    model = hearing()
    before = [sorted(vars(layer)) for layer in model.stack.of(model.base)]
    kept_by(model, texts, examples)
    assert [sorted(vars(layer)) for layer in model.stack.of(model.base)] == before
    assert model.gates == {"touch": 0.5}
