"""L2: off is the base, bit for bit."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from tests.laws.calls import DECODING, MODES, all_same, copy_of, forward_tensors, generate_tensors
from tests.support.toys import BASES, ToyFusion, attached, felt, llama, texts

MORE = settings(max_examples=40)
_MODELS: dict[tuple[str, str], tuple[nn.Module, SafeModel]] = {}
STRANGE = [math.nan, math.inf, -math.inf, -0.0, 1e38, 1.0]
WAYS = ["nothing", "absent", "off", "gate_0", "call_gate_0", "row_gates_0", "masked"]


def untouched_and_attached(name: str, dtype: str = "float32") -> tuple[nn.Module, SafeModel]:
    """A base with two modalities, and a copy of it made before they were attached."""
    key = name, dtype
    if key not in _MODELS:
        base = BASES[name]().to(getattr(torch, dtype))
        _MODELS[key] = copy_of(base), attached(base, "touch", "smell")
    return _MODELS[key]


def spoil(model: SafeModel, value: float) -> None:
    """Overwrite every trainable parameter."""
    for parameter in model.trainable_parameters().values():
        parameter.data.fill_(value)


def padded(batch: dict[str, Tensor], draw: Any) -> dict[str, Tensor]:
    """The batch with a random part of each row masked, at its left or its right."""
    mask = batch["attention_mask"].clone()
    left, words = draw(st.booleans()), mask.shape[1] - 4 * ("pixel_values" in batch)
    for row in mask:
        count = draw(st.integers(0, words - 1))
        where = slice(0, count) if left else slice(len(row) - count, len(row))
        if "pixel_values" not in batch or not left:
            row[where] = 0
    return batch | {"attention_mask": mask}


def call_off(model: SafeModel, way: str, rows: int, method: str) -> Any:
    """``model``'s method, with both modalities switched off in one of ``WAYS``."""
    called = getattr(model, method)
    samples = {**felt(rows), **felt(rows, "smell", seed=1)}

    def call(**batch: Any) -> Any:
        if way == "nothing":
            return called(**batch)
        if way == "off":
            with model.off():
                return called(**batch, **samples)
        if way == "gate_0":
            kept = model.gates
            model.set_gate(0)
            try:
                return called(**batch, **samples)
            finally:
                for name, gate in kept.items():
                    model.set_gate(gate, name)
        if way == "call_gate_0":
            return called(**batch, **samples, gate=-0.0)
        if way == "row_gates_0":
            return called(**batch, **samples, gate={"touch": torch.zeros(rows), "smell": 0})
        flag = "present" if way == "absent" else "mask"
        silent = {k: v & False if k.endswith(flag) else v for k, v in samples.items()}
        return called(**batch, **silent)

    return call


@MORE
@given(data=st.data())
@pytest.mark.parametrize("name", BASES)
def test_an_off_forward_is_the_base(name: str, data: st.DataObject) -> None:
    """L2: loss, logits and hidden states, for any weights, shape, padding, dtype and mode."""
    draw = data.draw
    dtype = draw(st.sampled_from(["float32", "bfloat16"]))
    untouched, model = untouched_and_attached(name, dtype)
    spoil(model, draw(st.sampled_from(STRANGE)))
    rows = draw(st.integers(1, 3))
    batch = padded(texts(untouched, rows, draw(st.integers(1, 6)), seed=rows), draw)
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].to(getattr(torch, dtype))
    off = call_off(model, draw(st.sampled_from(WAYS)), rows, "forward")
    with MODES[draw(st.sampled_from(sorted(MODES)))]():
        expected = forward_tensors(untouched, batch)
        assert all_same(forward_tensors(off, batch), expected)
        assert all_same(forward_tensors(model.base, batch), expected)


@MORE
@given(data=st.data())
@pytest.mark.parametrize("name", BASES)
def test_an_off_generate_is_the_base(name: str, data: st.DataObject) -> None:
    """L2: greedy, sampled and beam tokens with their logits, with a cache and without."""
    draw = data.draw
    untouched, model = untouched_and_attached(name)
    spoil(model, draw(st.sampled_from(STRANGE)))
    rows = draw(st.integers(1, 2))
    batch = padded(texts(untouched, rows, draw(st.integers(1, 4)), seed=rows), draw)
    options = DECODING[draw(st.sampled_from(sorted(DECODING)))]
    off = call_off(model, draw(st.sampled_from(WAYS)), rows, "generate")
    expected = generate_tensors(untouched.generate, batch, options)
    assert all_same(generate_tensors(off, batch, options), expected)


@pytest.mark.parametrize("name", BASES)
def test_on_is_not_the_base(name: str) -> None:
    """The comparisons above can fail: an open gate changes every row of every base."""
    untouched, model = untouched_and_attached(name)
    spoil(model, 1.0)
    batch = texts(untouched, 2, 5)
    with torch.no_grad():
        on, off = model(**batch, **felt(2)).logits, untouched(**batch).logits
    assert (on != off).flatten(1).any(1).all()


@given(st.permutations(["on", "off", "on", "gate_0", "nothing"]))
def test_the_order_of_calls_does_not_matter(order: list[str]) -> None:
    """L2: a call that was on leaves nothing behind for the next one."""
    untouched, model = untouched_and_attached("llama")
    spoil(model, math.nan)
    batch = texts(untouched, 2, 4)
    with torch.no_grad():
        expected = forward_tensors(untouched, batch)
        for way in order:
            if way == "on":
                model(**batch, **felt(2))
            else:
                off = call_off(model, way, 2, "forward")
                assert all_same(forward_tensors(off, batch), expected)


def test_gradients_through_an_off_call_are_the_bases() -> None:
    """L2: with respect to input embeddings, an off call has the base's gradient."""
    untouched, model = untouched_and_attached("llama")
    gradients = []
    for called in (untouched, call_off(model, "off", 2, "forward")):
        torch.manual_seed(5)
        embeddings = torch.randn(2, 4, 16, requires_grad=True)
        called(inputs_embeds=embeddings).logits.square().sum().backward()
        gradients.append(embeddings.grad)
    assert all_same(gradients[:1], gradients[1:])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_off_holds_for_each_attention_implementation(implementation: str) -> None:
    """L2: eager and sdpa attention, each against itself."""
    base = llama(attn_implementation=implementation)
    untouched, model = copy_of(base), attached(base)
    spoil(model, math.inf)
    batch = texts(base, 2, 5)
    off = call_off_one(model)
    assert all_same(forward_tensors(off, batch), forward_tensors(untouched, batch))


def call_off_one(model: SafeModel) -> Any:
    """``model`` with its one modality present and its gate at 0."""
    return lambda **batch: model(**batch, **felt(len(batch["input_ids"])), gate=0.0)


def test_a_base_failure_is_the_same_failure() -> None:
    """L2: where the base itself refuses a call, the model refuses it alike."""
    untouched, model = untouched_and_attached("gpt2")
    batch = texts(untouched, 1, 65)
    with pytest.raises(IndexError) as expected:
        untouched(**batch)
    with pytest.raises(IndexError) as seen, model.off():
        model(**batch, **felt(1))
    assert str(seen.value) == str(expected.value)


def test_a_plugin_is_not_called_when_its_modality_is_off() -> None:
    """L3: neither encoder, projector nor adapter runs in any of the ways to be off."""
    model = attached(llama(), fusion=_Counting())
    batch = texts(model.base, 2, 4)
    modality = model.modality("touch")
    calls: list[str] = []
    for part in ("encoder", "projector"):
        getattr(modality, part).register_forward_hook(lambda *_, part=part: calls.append(part))
    with model.off():
        model(**batch, **felt(2))
    model(**batch, **felt(2), gate=0)
    model(**batch, **felt(2), gate=torch.zeros(2))
    model(**batch, **felt(2, present=[False, False]))
    assert calls == []
    assert modality.fusion.calls == 0
    model(**batch, **felt(2))
    assert calls == ["encoder", "projector"]
    assert modality.fusion.calls == 2


class _Counting(ToyFusion):
    calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        return super().forward(*args, **kwargs)


def test_the_base_called_directly_never_changes() -> None:
    """The hooks do nothing outside a call of the model that installed them."""
    untouched, model = untouched_and_attached("llama")
    batch = texts(untouched, 2, 4)
    changed: list[bool] = []
    other = attached(copy.deepcopy(model.base))
    layer = other.base.model.layers[1]

    def call_the_first_base(*_: Any) -> None:
        same = all_same(forward_tensors(model.base, batch), forward_tensors(untouched, batch))
        changed.append(not same)

    layer.register_forward_pre_hook(call_the_first_base)
    other(**batch, **felt(2))
    assert changed == [False]
