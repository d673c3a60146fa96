"""Every way of ``generate`` uses the samples, and is the base's where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from tests.laws.calls import all_same, copy_of
from tests.support.tolerance import FORWARD, assert_same_sums
from tests.support.toys import PAD, attached, felt, llama, texts

GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
WORDS = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])  # repeats itself, so that look-ups find something

Options = Callable[[SafeModel], dict[str, Any]]
WAYS: dict[str, Options] = {
    "static cache": lambda model: {"cache_implementation": "static"},
    "chunked prefill": lambda model: {"prefill_chunk_size": 3},
    "prompt lookup": lambda model: {"prompt_lookup_num_tokens": 2},
    "own base assists": lambda model: {"assistant_model": model.base},
    "another base assists": lambda model: {"assistant_model": llama(num_hidden_layers=1).eval()},
    "a listening base assists": lambda model: {"assistant_model": attached(llama()).base},
}


@pytest.fixture(scope="module")
def model() -> SafeModel:
    """A Llama that can touch."""
    return attached(llama())


@pytest.fixture(scope="module")
def untouched() -> nn.Module:
    """The Llama alone."""
    return copy_of(llama())


def prompt() -> dict[str, Tensor]:
    """One text."""
    return {"input_ids": WORDS, "attention_mask": torch.ones_like(WORDS)}


@pytest.mark.parametrize("way", WAYS)
def test_a_faster_way_generates_the_same(model: SafeModel, way: str) -> None:
    """Through any cache, chunk or assistant, the tokens are those of plain greedy."""
    active = model.generate(**prompt(), **felt(1), **GREEDY)
    assert torch.equal(model.generate(**prompt(), **felt(1), **WAYS[way](model), **GREEDY), active)
    assert not torch.equal(active, model.generate(**prompt(), **GREEDY))


@pytest.mark.parametrize("way", WAYS)
def test_a_faster_way_without_a_sample_is_the_bases(
    model: SafeModel, untouched: nn.Module, way: str
) -> None:
    """L2: absent or off, the same options give the base's own tokens and logits."""
    options = {**WAYS[way](model), **GREEDY, "output_logits": True, "return_dict_in_generate": True}

    def tokens(call: Callable[..., Any], **samples: Tensor) -> list[Tensor]:
        out = call(**prompt(), **samples, **options)
        return [out.sequences, *out.logits]

    expected = tokens(untouched.generate)
    assert all_same(tokens(model.generate), expected)
    with model.off():
        assert all_same(tokens(model.generate, **felt(1)), expected)


def padded(batch: dict[str, Tensor], left: int, right: int) -> dict[str, Tensor]:
    """The texts with padding on either side."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    sides = (left, right)
    return {
        "input_ids": nn.functional.pad(ids, sides, value=PAD),
        "attention_mask": nn.functional.pad(mask, sides),
    }


def test_padding_on_the_left_changes_no_token(model: SafeModel) -> None:
    """A sample's effect does not depend on how far a text was padded for its batch."""
    batch, samples = texts(model.base, 2, 4), felt(2)
    plain = model.generate(**batch, **samples, **GREEDY)[:, 4:]
    moved = model.generate(**padded(batch, 3, 0), **samples, **GREEDY)[:, 7:]
    assert torch.equal(moved, plain)


@pytest.mark.parametrize("left", [0, 3])
def test_padding_on_either_side_leaves_the_logits(model: SafeModel, left: int) -> None:
    """Logits of the real tokens are, to rounding, those of the text without padding."""
    batch, samples = texts(model.base, 2, 4), felt(2)
    inputs = padded(batch, left, 3 - left)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = model(**batch, **samples).logits
        moved = model(**inputs, **samples, position_ids=positions).logits[:, left : left + 4]
    assert_same_sums(moved, plain, FORWARD)
