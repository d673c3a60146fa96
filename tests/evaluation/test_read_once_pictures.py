"""A prompt with pictures that is asked again is not read again, nor are its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import nn

from safe_framework.core.layer_hooks import get_hidden_states
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_past import PromptPasts
from safe_framework.data.examples import Example
from safe_framework.data.pictures import Picture
from safe_framework.evaluation.answers import answer_with_confidence, eval_mode
from safe_framework.evaluation.read_once import behind_pictures, prompts_read_once
from tests.evaluation.conftest import AddTokens, PairEncoder
from tests.evaluation.pictured import COLOURS, WideProjector, sample, seen
from tests.support.lanes import slow_but
from tests.support.seeing import WORDS, picture, seeing_bases

BASES = seeing_bases()
BEHIND = {"llava", "llava-next", "smolvlm", "idefics3", "internvl"}
"""Bases of which a prompt leaves keys and values that its ids and pictures decide alone."""


def touching(name: str = "llava", attend: Any = "answer") -> SafeModel:
    """A tiny base of a type in float64, with a sense."""
    base, processor = BASES[name]()
    model = SafeModel(base.double(), processor)
    torch.manual_seed(0)
    projector = WideProjector()
    projector.linear = nn.Linear(2, model.facts().hidden_size)
    parts: Any = {"encoder": PairEncoder(), "projector": projector, "fusion": AddTokens()}
    model.add_modality("touch", attend=attend, **parts)
    return model


def asked(count: int = 16) -> list[Example]:
    """Questions of several lengths, some about the same picture, each with a sample."""
    drawn = np.random.default_rng(0)
    return [
        Example(
            " ".join([*drawn.choice(WORDS, 1 + n % 5), WORDS[n % 11]]),
            "red",
            {"touch": sample(n)},
            f"test.jsonl:{n + 1}",
            images=(seen(COLOURS[n % 3]),),
        )
        for n in range(count)
    ]


def answers(model: SafeModel, examples: Sequence[Example], gate: float) -> list[Any]:
    """The answers at one gate."""
    options: Any = {"batch_size": 6, "max_new_tokens": 3, "gate": {"touch": gate}}
    return answer_with_confidence(model, examples, **options)


def bare(examples: Sequence[Example]) -> list[Example]:
    """The examples without their samples."""
    return [attrs.evolve(one, samples={}) for one in examples]


def test_there_are_bases() -> None:
    """Law: the bases below are among those that are made, and others besides."""
    assert set(BASES) > BEHIND


@pytest.mark.parametrize("name", slow_but(["llava"], BASES))
def test_answers_are_those_of_whole_prompts(name: str) -> None:
    """Law: token for token, answers behind kept pictures are what a call of each prompt gives."""
    model, examples = touching(name), asked()
    ways = [(examples, 0.0), (examples, 1.0), (examples[::-1], 0.5), (bare(examples), 1.0)]
    with eval_mode(model):
        whole = [answers(model, *way) for way in ways]
        with prompts_read_once(model):
            behind = [answers(model, *way) for way in ways]
            read = behind_pictures(model, examples[:4]) is not None
    assert read is (name in BEHIND)
    for one, other in zip(whole, behind, strict=True):
        assert [text for text, _ in one] == [text for text, _ in other]
        np.testing.assert_allclose([p for _, p in one], [p for _, p in other], rtol=1e-4)


def test_a_sample_and_a_picture_tell() -> None:
    """Law: behind kept pictures, another sample or picture moves what is answered."""
    model, examples = touching(), asked()
    others = [attrs.evolve(one, images=(seen("white"),)) for one in examples]
    unlike = [attrs.evolve(one, samples={"touch": sample(n + 1)}) for n, one in enumerate(examples)]
    with eval_mode(model), prompts_read_once(model):
        own, *found = (answers(model, rows, 1.0) for rows in (examples, others, unlike))
    assert all(p != q for one in found for (_, p), (_, q) in zip(own, one, strict=True))


def test_a_picture_is_looked_at_once() -> None:
    """Law: the tower sees each picture once, and a new question is read without its picture."""
    model, examples = touching(), asked()
    towers, columns = list[int](), list[int]()
    base: Any = model.base
    base.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: towers.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    layers: Any = model.stack.of(model.base)
    with eval_mode(model), prompts_read_once(model):
        answers(model, examples, 1.0)
        tried = 2  # rows, which are read whole beside what was kept
        assert sum(towers) == 3 + tried
        towers.clear()
        layers[-1].register_forward_pre_hook(
            lambda _, args, kwargs: columns.append(get_hidden_states(args, kwargs).shape[1]),
            with_kwargs=True,
        )
        answers(model, examples, 0.5)
        answers(model, bare(examples), 1.0)
        assert set(columns) == {1}
        answers(model, [attrs.evolve(one, prompt=f"{one.prompt} cat") for one in examples], 1.0)
    assert not towers
    assert 1 < max(columns) < 8  # at most six words and what begins a text; a picture has four


def test_a_new_question_opens_no_known_picture_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: asked at another gate, a prompt's pictures are neither opened nor processed."""
    model, examples = touching(), asked()
    with eval_mode(model), prompts_read_once(model):
        first = answers(model, examples, 1.0)
        monkeypatch.setattr(Picture, "open", lambda self: pytest.fail("it is opened again"))
        assert answers(model, examples, 1.0) == first


def test_what_was_asked_long_ago_is_forgotten() -> None:
    """Law: no more is kept than there is room for, and answers do not depend on it."""
    model, examples = touching(), asked()
    with eval_mode(model):
        pasts = PromptPasts(model, most_bytes=20_000)
        whole = PromptPasts(model)
        options: Any = {"max_new_tokens": 3, "do_sample": False}
        for start in (0, 4, 8, 12, 0, 4):
            some = examples[start : start + 4]
            rows = [pasts.row(one.prompt, one.images, {}) for one in some]
            given, wanted = pasts.inputs(rows), whole.inputs(rows)
            assert given is not None
            assert wanted is not None
            assert pasts.bytes <= pasts.most_bytes < whole.bytes + pasts.most_bytes
            assert torch.equal(
                model.generate(**given, **options), model.generate(**wanted, **options)
            )
        assert whole.bytes > pasts.most_bytes


def test_a_base_that_differs_behind_a_cache_reads_whole_prompts() -> None:
    """Law: where the base gives something else behind a cache, pictures are read with calls."""
    model, examples = touching(), asked(4)
    layers: Any = model.stack.of(model.base)
    layers[-1].register_forward_hook(lambda _, args, out: out * (1.1 if out.shape[1] == 1 else 1.0))
    with eval_mode(model), prompts_read_once(model):
        assert behind_pictures(model, examples) is None


def test_only_pictures_beside_answers_are_kept() -> None:
    """Law: a sense that acts on the prompt, texts alone, and no block are left to whole calls."""
    everywhere, model, examples = touching(attend="all"), touching(), asked(4)
    plain = [attrs.evolve(one, images=()) for one in examples]
    with eval_mode(model):
        assert behind_pictures(model, examples) is None
        with prompts_read_once(model):
            assert behind_pictures(everywhere, examples) is None
            assert behind_pictures(model, plain) is None
            assert behind_pictures(model, examples) is not None
        with prompts_read_once(everywhere):
            assert behind_pictures(everywhere, examples) is None


def test_several_pictures_of_a_row_are_kept() -> None:
    """Law: a row with two pictures is asked again behind both."""
    model = touching()
    pair = (seen("red"), Picture(picture("blue", 12, 16), "blue.png"))
    examples = [attrs.evolve(one, images=pair) for one in asked(4)]
    with eval_mode(model):
        whole = answers(model, examples, 1.0)
        with prompts_read_once(model):
            found = answers(model, examples, 1.0)
            assert behind_pictures(model, examples) is not None
    assert [text for text, _ in found] == [text for text, _ in whole]
