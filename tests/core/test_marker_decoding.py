"""Decoding with markers in the text: every way agrees, and what comes back has their ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_framework.errors import SafeError
from tests.support.marked import SAMPLE, TEXTS, batch_of, marking
from tests.support.toys import bart, gpt2, llama, opt, t5

DECODERS: dict[str, Callable[[], nn.Module]] = {"llama": llama, "gpt2": gpt2, "opt": opt}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "num_return_sequences": 2}])
@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_every_way_of_decoding_agrees(
    name: str, inline: bool, options: dict[str, int], side: str
) -> None:
    """Cached, uncached, in chunks and with a static cache, the tokens are the same."""
    model = marking(DECODERS[name](), inline=inline)
    batch = batch_of(model, padding_side=side)

    def answer(**way: Any) -> Tensor:
        found: Tensor = model.generate(
            **batch, **options, **way, max_new_tokens=5, min_new_tokens=5, do_sample=False
        )
        return found

    cached = answer()
    assert torch.equal(answer(use_cache=False), cached)
    assert torch.equal(answer(prefill_chunk_size=2), cached)
    if name == "llama":
        assert torch.equal(answer(cache_implementation="static"), cached)


@pytest.mark.parametrize("name", [*DECODERS, "t5", "bart"])
def test_a_row_answers_as_it_does_alone(name: str) -> None:
    """Beams of a row in a mixed batch carry its own markers."""
    model = marking((DECODERS | {"t5": t5, "bart": bart})[name](), inline=True)
    options = {"num_beams": 2, "max_new_tokens": 4, "min_new_tokens": 4}
    ids = model.generate(**batch_of(model), **options)
    for row, (text, sample) in enumerate(zip(TEXTS, [SAMPLE, None, SAMPLE], strict=True)):
        alone = model.generate(**model.processor(text, touch=sample), **options)
        assert torch.equal(ids[row, -4:], alone[0, -4:])


@pytest.mark.parametrize("as_dict", [False, True])
def test_returned_texts_have_the_ids_of_markers(as_dict: bool) -> None:
    """The prompt of every returned sequence is what was given, markers in their positions."""
    model = marking(llama(), inline=True)
    batch = batch_of(model)
    out = model.generate(
        **batch, max_new_tokens=2, num_beams=2, num_return_sequences=2,
        return_dict_in_generate=as_dict,
    )  # fmt: skip
    ids = out.sequences if as_dict else out
    prompts = batch["input_ids"].repeat_interleave(2, 0)
    assert torch.equal(ids[:, : prompts.shape[1]], prompts)
    shown = model.processor.batch_decode(ids[:, : prompts.shape[1]], skip_special_tokens=True)
    assert shown[0] == "w3w4 w5"
    assert model.processor.decode(prompts[4, -4:]) == "</touch>w7 w8"


def test_a_cache_goes_on_where_it_ended() -> None:
    """With a cache, ``generate`` looks up only what is new; markers in it are placed as ever."""
    from transformers import DynamicCache

    model = marking(llama())
    batch = dict(model.processor("w3 w4 <touch> w5 w6", touch=SAMPLE))
    ids, mask = batch.pop("input_ids"), batch.pop("attention_mask")
    whole = model.generate(input_ids=ids, attention_mask=mask, **batch, max_new_tokens=4)
    for before in (2, 5):
        cache = DynamicCache(config=model.base.config)
        model(input_ids=ids[:, :before], **batch, past_key_values=cache)
        rest = {"attention_mask": mask, **batch, "past_key_values": cache}
        assert torch.equal(model.generate(input_ids=ids, **rest, max_new_tokens=4), whole)


def test_a_cache_with_markers_cannot_go_on_without() -> None:
    """A shut modality's span cannot be taken out of what is cached."""
    model = marking(llama())
    batch = model.processor("w3 <touch> w4 w5", touch=SAMPLE)
    cache = model(**batch, use_cache=True).past_key_values
    cache.crop(-1)
    with pytest.raises(SafeError, match=r"`past_key_values` holds text.*\nhint: "):
        model.generate(**batch, past_key_values=cache, gate=0.0)


def test_rows_run_apart_keep_their_markers() -> None:
    """``split_rows`` takes each row from the run that it belongs to, prompts included."""
    model = marking(llama())
    batch = batch_of(model)
    together = model.generate(**batch, max_new_tokens=3, min_new_tokens=3)
    model.split_rows = True
    assert torch.equal(model.generate(**batch, max_new_tokens=3, min_new_tokens=3), together)
