"""L1, L2, L4 and L6 with the base's own pictures in the batch, made by its own processor."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from safe_framework.core.base_model import installed_hooks
from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.model import SafeModel
from safe_framework.interfaces.types import IGNORED
from safe_framework.utils.hashing import fingerprint, tokenizer_fingerprint
from safe_framework_plugins.fusion.lora import LoraFusion
from safe_framework_plugins.projectors.standard import StandardProjector
from tests.laws.calls import DECODING, MODES, all_same, copy_of, forward_tensors, generate_tensors
from tests.laws.test_off import STRANGE, WAYS, call_off, spoil
from tests.support.lanes import slow_but
from tests.support.seeing import picture, seeing_bases
from tests.support.toys import DIM, ToyEncoder, felt

Batch = dict[str, Tensor]
TYPES = ["llava", "qwen2-vl", "florence2", "mllama"]
"""Patches between the words; of any size and with positions of their own; an encoder-decoder;
cross-attention."""
TYPE = pytest.mark.parametrize("name", slow_but(["llava", "mllama"], TYPES))
ONE_EACH = {"florence2"}
"""Types that take a picture with each text of a batch, or with none."""
COLOURS = ["red", "blue", "green", "white"]
QUESTIONS = ["what is this", "the cat sat on a mat", "describe"]
FEW = settings(max_examples=25)


def with_senses(base: nn.Module, processor: Any, *names: str) -> SafeModel:
    """The base with shipped plugins under each name, whose deltas are not zero."""
    model = SafeModel(base, processor)
    for number, name in enumerate(names):
        torch.manual_seed(number)
        model.add_modality(
            name,
            encoder=ToyEncoder(),
            projector=StandardProjector(DIM, model.stack.hidden_size, tokens=2, hidden_dim=8),
            fusion=LoraFusion(model.facts(), layers=[0, -1], rank=2),
        )
    waken(model)
    return model


def waken(model: SafeModel) -> None:
    """Draw every weight anew, as different from zero as trained ones are."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.trainable_parameters().values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


@functools.cache
def untouched_and_attached(name: str) -> tuple[nn.Module, SafeModel]:
    """A base with two modalities, and a copy of it made before they were attached."""
    base, processor = seeing_bases()[name]()
    return copy_of(base), with_senses(base, processor, "touch", "smell")


def shown(
    model: SafeModel, questions: list[str], colours: list[str | None], side: str = "left"
) -> Batch:
    """Questions, each beside a picture of its colour or beside none."""
    images = [[] if colour is None else [picture(colour, 20, 16)] for colour in colours]
    given = {"images": images} if any(images) else {}
    batch = dict(model.processor(text=questions, padding_side=side, **given))
    if decodes_separately(model.base):
        batch["decoder_input_ids"] = batch["input_ids"][:, -2:].contiguous()
    ids = batch.get("decoder_input_ids", batch["input_ids"])
    return batch | {"labels": ids.masked_fill(ids == model.base.config.image_token_id, IGNORED)}


def drawn(draw: Any, name: str, model: SafeModel, rows: int) -> Batch:
    """Random questions, of which some have a picture, padded at a random side."""
    questions = draw(st.lists(st.sampled_from(QUESTIONS), min_size=rows, max_size=rows))
    one = st.sampled_from(COLOURS if name in ONE_EACH else [*COLOURS, None])
    colours = draw(st.lists(one, min_size=rows, max_size=rows))
    return shown(model, questions, colours, draw(st.sampled_from(["left", "right"])))


@TYPE
@FEW
@given(data=st.data())
def test_an_off_forward_is_the_base_with_its_pictures(name: str, data: st.DataObject) -> None:
    """L2: loss, logits and hidden states, for any weights, rows, pictures, side and mode."""
    draw = data.draw
    untouched, model = untouched_and_attached(name)
    spoil(model, draw(st.sampled_from(STRANGE)))
    rows = draw(st.integers(1, 3))
    batch = drawn(draw, name, model, rows)
    off = call_off(model, draw(st.sampled_from(WAYS)), rows, "forward")
    with MODES[draw(st.sampled_from(sorted(MODES)))]():
        expected = forward_tensors(untouched, batch)
        assert all_same(forward_tensors(off, batch), expected)
        assert all_same(forward_tensors(model.base, batch), expected)


@TYPE
@FEW
@given(data=st.data())
def test_an_off_generate_is_the_base_with_its_pictures(name: str, data: st.DataObject) -> None:
    """L2: greedy, sampled and beam tokens with their logits, with a cache and without."""
    draw = data.draw
    untouched, model = untouched_and_attached(name)
    spoil(model, draw(st.sampled_from(STRANGE)))
    rows = draw(st.integers(1, 2))
    batch = drawn(draw, name, model, rows)
    options = DECODING[draw(st.sampled_from(sorted(DECODING)))]
    off = call_off(model, draw(st.sampled_from(WAYS)), rows, "generate")
    expected = generate_tensors(untouched.generate, batch, options)
    assert all_same(generate_tensors(off, batch, options), expected)


@TYPE
@FEW
@given(data=st.data())
def test_rows_without_the_sense_keep_their_bits(name: str, data: st.DataObject) -> None:
    """L4: with a picture and without one, beside rows that carry a sample or even NaN."""
    draw = data.draw
    untouched, model = untouched_and_attached(name)
    waken(model)
    rows = draw(st.integers(2, 4))
    batch = drawn(draw, name, model, rows)
    present = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    if draw(st.booleans()):
        spoil(model, math.nan)
    with torch.no_grad():
        mixed = model(**batch, **felt(rows, present=present)).logits
        expected = untouched(**batch).logits
    for row, here in enumerate(present):
        assert all_same([mixed[row]], [expected[row]]) != here


@TYPE
@FEW
@given(data=st.data())
def test_senses_compose_beside_pictures(name: str, data: st.DataObject) -> None:
    """L6: with one of two modalities off, the model is the one that has only the other."""
    draw = data.draw
    _, model = untouched_and_attached(name)
    waken(model)
    off = draw(st.sampled_from(["touch", "smell"]))
    (kept,) = {"touch", "smell"} - {off}
    rows = draw(st.integers(1, 3))
    batch = drawn(draw, name, model, rows)
    only = copy.deepcopy(model)
    only.remove_modality(off)
    here = felt(rows, kept)
    with torch.no_grad():
        expected = forward_tensors(only, batch | here)
        with model.off(off):
            assert all_same(forward_tensors(model, batch | here | felt(rows, off)), expected)
        shut = {off: 0.0, kept: 1.0}
        both = batch | here | felt(rows, off)
        assert all_same(forward_tensors(lambda **b: model(**b, gate=shut), both), expected)
        assert not all_same(forward_tensors(model, both), expected)


@TYPE
def test_a_whole_life_with_pictures_leaves_the_base_as_it_was(name: str) -> None:
    """L1: attach, train on pictures, generate and detach change no weight, setting or word."""
    base, processor = seeing_bases()[name]()
    before = fingerprint(base), str(base.config.to_dict()), tokenizer_fingerprint(processor)
    settings_before = str(processor.image_processor.to_dict())
    model = with_senses(base, processor, "touch")
    batch = shown(model, QUESTIONS[:2], ["red", "blue"]) | felt(2)
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=0.1)
    model.train()
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
    model.eval()
    generate_tensors(model.generate, batch, {"num_beams": 2})
    assert model.detach() is base
    now = fingerprint(base), str(base.config.to_dict()), tokenizer_fingerprint(processor)
    assert now == before
    assert str(processor.image_processor.to_dict()) == settings_before
    assert installed_hooks(base) == []
    assert all(parameter.grad is None for parameter in base.parameters())


@TYPE
def test_another_picture_changes_every_call(name: str) -> None:
    """The comparisons above can fail: with the sense off and on, a picture matters to its row."""
    untouched, model = untouched_and_attached(name)
    waken(model)
    red, blue = (shown(model, QUESTIONS[:2], [first, "green"]) for first in ("red", "blue"))
    with torch.no_grad():
        for call, more in ((untouched, {}), (model, {}), (model, felt(2))):
            one, two = call(**red, **more).logits, call(**blue, **more).logits
            assert not torch.equal(one[0], two[0])
            assert torch.equal(one[1], two[1])
