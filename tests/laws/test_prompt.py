"""L8: with `attend = "answer"`, the prompt is the base's bit for bit up to its last position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safe_framework.utils.tensors import bitwise_equal
from tests.laws.calls import MODES, copy_of
from tests.support.marked import batch_of, marking
from tests.support.toys import (
    LAYERS,
    PAD,
    VOCABULARY,
    attached,
    bart,
    felt,
    gpt2,
    llama,
    llava,
    opt,
    texts,
)

BASES = {"llama": llama, "gpt2": gpt2, "opt": opt}
LENGTH = 6
DECODING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "returned sequences": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "chunks": {"prefill_chunk_size": 4},
    "static": {"cache_implementation": "static", "disable_compile": True},
}


def padded(base: Any, lengths: list[int], side: str) -> dict[str, Tensor]:
    """Texts of these lengths, padded on one side."""
    batch = texts(base, len(lengths), LENGTH)
    columns = torch.arange(LENGTH)
    each = torch.tensor(lengths)[:, None]
    real = columns < each if side == "right" else columns >= LENGTH - each
    ids = batch["input_ids"].masked_fill(~real, PAD)
    return {"input_ids": ids, "attention_mask": real.long()}


def prompt_of(out: Any, row: int, columns: slice) -> list[Tensor]:
    """Hidden states, keys and values of some columns of a row, at every layer."""
    found = [states[row, columns] for states in out.hidden_states]
    for layer in out.past_key_values.layers:
        found += [layer.keys[row, :, columns], layer.values[row, :, columns]]
    return found


@given(
    lengths=st.lists(st.integers(2, LENGTH), min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
    base=st.sampled_from(list(BASES)),
    mode=st.sampled_from(list(MODES)),
    data=st.data(),
)
def test_the_prompt_is_the_bases(
    lengths: list[int], side: str, base: str, mode: str, data: st.DataObject
) -> None:
    """L8: hidden states, keys and values at every layer; the last position of a row hears."""
    rows = len(lengths)
    present = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    whole = BASES[base]()
    untouched, model = copy_of(whole), attached(whole, "touch", "smell", attend="answer")
    batch = padded(whole, lengths, side)
    samples = felt(rows, "touch", present) | felt(rows, "smell", present, seed=1)
    options = {"output_hidden_states": True, "use_cache": True}
    with MODES[mode]():
        heard, expected = model(**batch, **samples, **options), untouched(**batch, **options)
    for row, length in enumerate(lengths):
        start = 0 if side == "right" else LENGTH - length
        last = start + length - 1
        for one, other in zip(
            prompt_of(heard, row, slice(start, last)),
            prompt_of(expected, row, slice(start, last)),
            strict=True,
        ):
            assert bitwise_equal(one, other)
        same = bitwise_equal(heard.logits[row, last], expected.logits[row, last])
        assert same != present[row]


@pytest.mark.parametrize("base", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", DECODING)
def test_a_prompt_that_is_continued_is_the_bases(kind: str, base: str) -> None:
    """L8: however an answer is decoded, the cache holds the base's prompt in the end."""
    whole = BASES[base]()
    untouched, model = copy_of(whole), attached(whole, attend="answer")
    batch = padded(whole, [6, 4], "left")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "return_dict_in_generate": True}
    options |= {"output_logits": True, **DECODING[kind]}
    torch.manual_seed(3)
    heard = model.generate(**batch, **felt(2), **options)
    torch.manual_seed(3)
    expected = untouched.generate(**batch, **options)
    assert not bitwise_equal(heard.logits[0], expected.logits[0])
    layers = zip(heard.past_key_values.layers, expected.past_key_values.layers, strict=True)
    for one, other in layers:
        copies = len(one.keys) // 2
        for row, start in ((0, 0), (copies, 2)):
            for part in ("keys", "values"):
                mine, theirs = getattr(one, part), getattr(other, part)
                columns = slice(start, LENGTH - 1)
                assert bitwise_equal(mine[row, :, columns], theirs[row, :, columns])
    assert len(heard.past_key_values.layers) == LAYERS


def test_a_prompt_with_a_picture_is_the_bases() -> None:
    """L8: where the base has put a picture in, too."""
    base = llava()
    untouched, model = copy_of(base), attached(base, attend="answer")
    batch, options = texts(base, 2, 5), {"output_hidden_states": True, "use_cache": True}
    with torch.no_grad():
        heard, expected = model(**batch, **felt(2), **options), untouched(**batch, **options)
    before = slice(batch["input_ids"].shape[1] - 1)
    for row in range(2):
        pairs = zip(prompt_of(heard, row, before), prompt_of(expected, row, before), strict=True)
        assert all(bitwise_equal(one, other) for one, other in pairs)
        assert not bitwise_equal(heard.logits[row, -1], expected.logits[row, -1])


def test_the_encoders_text_is_the_bases() -> None:
    """L8: a decoder beside an encoder hears at each of its positions, the encoder at none."""
    base = bart()
    untouched, model = copy_of(base), attached(base, attend="answer")
    batch = texts(base, 2, 5)
    with torch.no_grad():
        heard, expected = model(**batch, **felt(2)), untouched(**batch)
    assert bitwise_equal(heard.encoder_last_hidden_state, expected.encoder_last_hidden_state)
    caches = (out.past_key_values.cross_attention_cache.layers for out in (heard, expected))
    for one, other in zip(*caches, strict=True):
        assert bitwise_equal(one.keys, other.keys)
        assert bitwise_equal(one.values, other.values)
    for position in range(batch["decoder_input_ids"].shape[1]):
        assert not bitwise_equal(heard.logits[:, position], expected.logits[:, position])


@pytest.mark.parametrize("inline", [False, True])
def test_with_markers_it_holds_before_the_first(inline: bool) -> None:
    """L8: vectors in the text are a part of the prompt; what stands before them is the base's."""
    base = llama()
    untouched = copy_of(base)
    model = marking(base, inline=inline)
    model.modality("touch").attend = "answer"
    batch = batch_of(model, padding_side="right")
    words = batch["input_ids"].masked_fill(batch["input_ids"] >= VOCABULARY, 3)
    before = int((batch["input_ids"][0] >= VOCABULARY).int().argmax())
    assert before == 1  # of "w3 <touch> w4 w5"
    options = {"output_hidden_states": True, "use_cache": True}
    with torch.no_grad():
        heard = model(**batch, **options)
        expected = untouched(words, batch["attention_mask"], **options)
    parts = zip(
        prompt_of(heard, 0, slice(before)), prompt_of(expected, 0, slice(before)), strict=True
    )
    assert all(bitwise_equal(one, other) for one, other in parts)
    assert not bitwise_equal(*(out.hidden_states[0][0, before] for out in (heard, expected)))


def test_everywhere_means_the_prompt_too() -> None:
    """With `attend = "all"`, the keys of the prompt above a fused layer are not the base's."""
    base = llama()
    untouched, model = copy_of(base), attached(base)
    batch = texts(base, 2, 5)
    with torch.no_grad():
        heard, expected = model(**batch, **felt(2)), untouched(**batch)
    keys = [out.past_key_values.layers[-1].keys[:, :, :-1] for out in (heard, expected)]
    assert not bitwise_equal(*keys)
