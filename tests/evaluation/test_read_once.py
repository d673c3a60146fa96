"""A prompt that is asked again is not read again, and its answers stay what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from safe_framework.core.layer_hooks import get_hidden_states
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_past import PromptPasts
from safe_framework.core.relevance import Strength
from safe_framework.data.examples import Example
from safe_framework.evaluation.answers import answer_with_confidence, eval_mode, example_inputs
from safe_framework.evaluation.read_once import behind_prompts, prompts_read_once
from safe_framework.evaluation.relevance import opens
from tests.evaluation.conftest import (
    HIDDEN,
    WORDS,
    AddTokens,
    LinearProjector,
    PairEncoder,
    tiny_tokenizer,
)
from tests.support.relevance import random_head

OPENING = "the cat sat on a mat"


def hearing(attend: Any = "answer") -> SafeModel:
    """A tiny base in float64 that can touch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0,
        eos_token_id=1, bos_token_id=None, initializer_range=0.5,
    )  # fmt: skip
    model = SafeModel(LlamaForCausalLM(config).double(), tiny_tokenizer())
    parts: Any = {"encoder": PairEncoder(), "projector": LinearProjector(), "fusion": AddTokens()}
    model.add_modality("touch", attend=attend, **parts)
    return model


def asked(count: int = 36) -> list[Example]:
    """Prompts of several lengths, most of which begin alike, each with its sample."""
    drawn = np.random.default_rng(0)
    return [
        Example(
            " ".join(
                [OPENING if n % 4 else "", *drawn.choice(WORDS[3:], 1 + n % 5), WORDS[3 + n % 11]]
            ),
            "red",
            {"touch": drawn.normal(0, 3, 2).astype(np.float32)},
            f"test.jsonl:{n + 1}",
        )
        for n in range(count)
    ]


def answers(model: SafeModel, examples: list[Example], gate: Strength) -> list[tuple[str, Any]]:
    """The answers at one gate."""
    return answer_with_confidence(model, examples, batch_size=24, gate={"touch": gate})


def columns_read(model: SafeModel) -> list[int]:
    """How many positions each call of the last layer computes, from now on."""
    seen = list[int]()
    layers: Any = model.stack.of(model.base)
    layers[-1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(get_hidden_states(args, kwargs).shape[1]),
        with_kwargs=True,
    )
    return seen


@pytest.mark.parametrize("attend", ["answer", "all"])
def test_answers_are_those_of_whole_prompts(attend: str) -> None:
    """Law: token for token, answers behind kept prompts are what a call of each prompt gives."""
    model, examples = hearing(attend), asked()
    bare = [Example(e.prompt, e.answer, {}, e.place) for e in examples]
    ways = [(examples, 0.0), (examples, 1.0), (examples[::-1], 1.0), (examples, 0.5), (bare, 1.0)]
    with eval_mode(model):
        whole = [answers(model, *way) for way in ways]
        with prompts_read_once(model):
            behind = [answers(model, *way) for way in ways]
    assert len({tuple(text for text, _ in one) for one in whole}) > 2  # the sample tells
    for one, other in zip(whole, behind, strict=True):
        assert [text for text, _ in one] == [text for text, _ in other]
        np.testing.assert_allclose([p for _, p in one], [p for _, p in other], rtol=1e-4)


def test_a_prompt_is_read_once() -> None:
    """Law: at another gate, and without a sample, a prompt's last position alone is computed."""
    model, examples = hearing(), asked()
    with eval_mode(model), prompts_read_once(model):
        answers(model, examples, 1.0)
        seen = columns_read(model)
        answers(model, examples, 0.5)
        answers(model, [Example(e.prompt, "", {}) for e in examples], 1.0)
    assert seen
    assert set(seen) == {1}


def test_heads_decide_on_whole_prompts() -> None:
    """Law: whatever of a prompt was read before, a relevance head reads it as it would alone."""
    model, examples = hearing(), asked()
    model.set_relevance("touch", random_head(2, columns=8))
    whole = opens(model, "touch", examples, batch_size=24)
    assert set(whole) == {True, False}
    with eval_mode(model):
        alone = answers(model, examples, "auto")
        with prompts_read_once(model):
            answers(model, examples, 1.0)
            assert opens(model, "touch", examples, batch_size=24) == whole
            assert [text for text, _ in answers(model, examples, "auto")] == [t for t, _ in alone]


def test_what_was_asked_long_ago_is_forgotten() -> None:
    """Law: no more is kept than there is room for, and answers do not depend on it."""
    model, examples = hearing(), asked()
    with eval_mode(model):
        batches = [example_inputs(model, examples[n : n + 12]) for n in range(0, 36, 12)] * 2
        pasts = PromptPasts(model, most_bytes=20_000)
        for batch in batches:
            given = pasts.behind(batch)
            assert "past_key_values" in given
            assert pasts.bytes <= pasts.most_bytes
            options: Any = {"max_new_tokens": 4, "do_sample": False}
            assert torch.equal(
                model.generate(**given, **options), model.generate(**batch, **options)
            )


def test_a_base_that_differs_behind_a_cache_reads_whole_prompts() -> None:
    """Law: where the base gives something else behind a cache, its prompts are read with calls."""
    model, examples = hearing(), asked(4)
    layers: Any = model.stack.of(model.base)
    layers[-1].register_forward_hook(lambda _, args, out: out * (1.1 if out.shape[1] == 1 else 1.0))
    with eval_mode(model), prompts_read_once(model):
        batch = example_inputs(model, examples)
        assert behind_prompts(model, batch) is batch


def test_blocks_of_one_model_share_what_they_read() -> None:
    """Law: a block within another adds nothing; another model's prompts are its own."""
    model, other = hearing(), hearing()
    with eval_mode(model), prompts_read_once(model):
        batch = example_inputs(model, asked(4))
        with prompts_read_once(model):
            behind_prompts(model, batch)
        seen = columns_read(model)
        assert "past_key_values" in behind_prompts(model, batch)
        assert behind_prompts(other, batch) is batch
    assert not seen
    assert behind_prompts(model, batch) is batch
