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
from tests.evaluation.pictured import WideProjector
from tests.evaluation.pictured import examples as pictured
from tests.evaluation.pictured import texts as about_pictures
from tests.support.lanes import slow_but
from tests.support.seeing import seeing_bases


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
    model: SafeModel, texts: list[Any], examples: list[Example]
) -> tuple[measured.Retention, int]:
    """What is kept at gate 1, and how often the base's first layer was run."""
    runs = []
    first = model.stack.of(model.base)[0]
    handle = getattr(first, "mlp", first).register_forward_hook(lambda *_: runs.append(1))
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


def seeing(base: str = "llava") -> SafeModel:
    """A tiny base that sees and can touch at its last layer."""
    torch.manual_seed(0)
    model = SafeModel(*seeing_bases()[base]())
    projector, fusion = WideProjector(), AddTokens()
    fusion.layers = (model.stack.count - 1,)
    projector.linear = torch.nn.Linear(2, model.facts().hidden_size)
    parts: Any = {"encoder": PairEncoder(), "projector": projector, "fusion": fusion}
    model.add_modality("touch", attend="answer", **parts)
    return model


@pytest.mark.parametrize("base", slow_but(["llava"], seeing_bases()))
def test_shared_layers_below_pictures_change_no_bit(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: numbers are those of whole calls on every base that sees."""
    rows, asked = questions_about_pictures()
    found, runs = kept_by(seeing(base), asked, rows)
    monkeypatch.setattr(shared_layers, "_may_begin_there", lambda model: False)
    whole, all_runs = kept_by(seeing(base), asked, rows)
    assert found == whole
    if base == "llava":
        assert runs < 0.8 * all_runs


def questions_about_pictures() -> tuple[list[Example], list[Any]]:
    """Rows with samples, and texts enough for several calls; all with pictures."""
    rows, asked = ([one for one in some if one.images] for some in (pictured(), about_pictures()))
    return rows, asked * 6


def test_a_tower_does_not_run_again() -> None:
    """Law: beside samples, texts begin behind what the base made of their pictures."""
    model, towers = seeing(), list[int]()
    base: Any = model.base
    handle = base.model.vision_tower.register_forward_hook(lambda *_: towers.append(1))
    rows, asked = questions_about_pictures()
    kept_by(model, asked, rows)
    handle.remove()
    calls = -(-len(asked) // measured.LOGIT_ROWS)
    base_and_absent, of_examples, tried = 2 * calls, 1, 4
    assert calls > 2
    assert len(towers) == base_and_absent + of_examples + tried
