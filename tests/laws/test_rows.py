"""L4: rows without the modality; L5: fresh is silent; L6: modalities compose."""

from __future__ import annotations

from itertools import chain
from itertools import combinations as subsets

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_framework.core.model import SafeModel
from tests.laws.calls import all_same, copy_of, forward_tensors, generate_tensors
from tests.support.fusions import VARIANTS, with_modality
from tests.support.lanes import combinations
from tests.support.toys import (
    BASES,
    ToyEncoder,
    ToyProjector,
    attached,
    felt,
    llama,
    lora,
    texts,
    tokenizer,
)

MODALITIES = ("touch", "smell", "sight")


@given(present=st.lists(st.booleans(), min_size=1, max_size=4), data=st.data())
def test_absent_rows_equal_the_bases(present: list[bool], data: st.DataObject) -> None:
    """L4: absent, all tokens masked or gate 0: such rows are the base's, the others not."""
    base = llama()
    untouched, model = copy_of(base), attached(base)
    rows = len(present)
    masked = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    shut = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    batch, samples = texts(base, rows, 4), felt(rows, present=present)
    samples["touch__mask"] &= ~torch.tensor(masked)[:, None]
    with torch.no_grad():
        mixed = model(**batch, **samples, gate=1.0 - torch.tensor(shut).float()).logits
        expected = untouched(**batch).logits
    for row in range(rows):
        on = present[row] and not masked[row] and not shut[row]
        assert all_same([mixed[row]], [expected[row]]) != on


def test_absent_rows_keep_negative_zeros() -> None:
    """L4: where an absent row's hidden state is -0.0, its sign stays; nothing is added to it."""
    model, seen = attached(llama()), []
    model.base.model.embed_tokens.weight.data[:, ::2] = -0.0
    model.base.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(**texts(model.base, 2, 4), **felt(2, present=[False, True]))
    assert torch.signbit(seen[0][0, :, ::2]).all()
    assert not torch.signbit(seen[0][1, :, ::2]).all()


@pytest.mark.parametrize("present", [[True, True], [False, True]])
def test_hidden_states_keep_their_strides(present: list[bool]) -> None:
    """L4: a transposed hidden state stays transposed: kernels, and so bits, depend on it."""
    base, seen = llama(), []
    base.model.embed_tokens.register_forward_hook(lambda *call: call[2].mT.contiguous().mT)
    model = attached(base)
    base.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = texts(base, 2, 4)
    with torch.no_grad():
        model(**batch)
        model(**batch, **felt(2, present=present))
    alone, active = seen
    assert not alone.is_contiguous()
    assert alone.stride() == active.stride()
    assert not torch.equal(alone, active)


def test_a_none_in_the_processors_list_is_an_absent_row() -> None:
    """L4: texts with None for a sample get the base's logits."""
    base = llama()
    untouched, model = copy_of(base), attached(base, tokenizer=tokenizer())
    batch = model.processor(["w3 w4", "w5 w6"], touch=[None, torch.ones(2, 4)])
    plain = {key: value for key, value in batch.items() if "__" not in key}
    with torch.no_grad():
        mixed, expected = model(**batch).logits, untouched(**plain).logits
    assert all_same([mixed[0]], [expected[0]])
    assert not torch.equal(mixed[1], expected[1])


def test_a_row_depends_on_its_own_sample_only() -> None:
    """Another sample in another row changes nothing in this one."""
    model = attached(llama())
    batch = texts(model.base, 2, 4)
    first, second = felt(2), felt(2)
    second["touch__values"][1] += 1
    with torch.no_grad():
        one, two = model(**batch, **first).logits, model(**batch, **second).logits
    assert all_same([one[0]], [two[0]])
    assert not torch.equal(one[1], two[1])


def test_beams_of_each_row_use_their_own_sample() -> None:
    """Beams and returned sequences carry the memory of the row that they came from."""
    model = attached(llama())
    batch, samples = texts(model.base, 3, 4), felt(3, present=[True, False, True])
    options = {"num_beams": 2, "num_return_sequences": 2}
    together = generate_tensors(model.generate, batch | samples, options)[0]
    for row in range(3):
        one = {key: value[row : row + 1] for key, value in (batch | samples).items()}
        alone = generate_tensors(model.generate, one, options)[0]
        assert torch.equal(together[2 * row : 2 * row + 2], alone)


def fresh(name: str) -> tuple[torch.nn.Module, SafeModel]:
    """A copy of a base, and the base with an untrained LoRA modality at gate 1."""
    base = BASES[name]()
    untouched, model = copy_of(base), SafeModel(base)
    model.add_modality(
        "touch", encoder=ToyEncoder(), projector=ToyProjector(), fusion=lora(model), gate=1.0
    )
    return untouched, model


@pytest.mark.parametrize(("name", "variant"), combinations(BASES, VARIANTS))
def test_a_fresh_modality_is_silent(name: str, variant: str) -> None:
    """L5: each shipped adapter, untrained at gate 1, leaves every bit of a forward call."""
    base = BASES[name]()
    untouched, model = copy_of(base), with_modality(variant, base, trained=False)
    batch = texts(untouched, 2, 5)
    with torch.no_grad():
        assert all_same(forward_tensors(model, batch | felt(2)), forward_tensors(untouched, batch))


def test_a_fresh_modality_keeps_negative_zeros() -> None:
    """L5: where a hidden state is -0.0, it stays -0.0 (the sum with 0.0 would be 0.0)."""
    untouched, model = fresh("llama")
    for base in (untouched, model.base):
        base.model.embed_tokens.weight.data[:, ::2] = -0.0
    batch = texts(untouched, 2, 5)
    with torch.no_grad():
        expected, seen = (forward_tensors(m, b) for m, b in (
            (untouched, batch), (model, batch | felt(2))
        ))  # fmt: skip
    assert torch.signbit(expected[2][..., ::2]).all()
    assert all_same(seen, expected)


def test_a_fresh_modality_generates_the_bases_tokens() -> None:
    """L5: beams with the untrained modality on are the base's, scores too."""
    untouched, model = fresh("llama")
    batch, options = texts(untouched, 2, 4), {"num_beams": 2}
    seen = generate_tensors(model.generate, batch | felt(2), options)
    assert all_same(seen, generate_tensors(untouched.generate, batch, options))


def test_a_trained_modality_is_not_silent() -> None:
    """The adapter that starts silent learns: one step of its gradient changes the logits."""
    untouched, model = fresh("llama")
    batch = texts(untouched, 2, 5) | felt(2)
    parameters = list(model.trainable_parameters().values())
    for _ in range(2):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        torch.optim.SGD(parameters, lr=1.0).step()
    with torch.no_grad():
        seen = model(**batch).logits
        assert not torch.equal(seen, untouched(**texts(untouched, 2, 5)).logits)


@pytest.mark.parametrize(
    "on", list(chain.from_iterable(subsets(MODALITIES, count) for count in range(4)))
)
def test_modalities_compose(on: tuple[str, ...]) -> None:
    """L6: with the other modalities off, the model is the one that has only these."""
    model = attached(llama(), *MODALITIES)
    only = attached(llama(), *MODALITIES)
    for name in set(MODALITIES) - set(on):
        only.remove_modality(name)
    batch = texts(model.base, 2, 4)
    samples = {name: felt(2, name, seed=number) for number, name in enumerate(MODALITIES)}
    every = {key: value for part in samples.values() for key, value in part.items()}
    some = {key: value for name in on for key, value in samples[name].items()}
    expected = forward_tensors(only, batch | some)
    assert all_same(forward_tensors(model, batch | some), expected)
    shut = {name: float(name in on) for name in MODALITIES}
    assert all_same(forward_tensors(lambda **b: model(**b, gate=shut), batch | every), expected)
    off = [name for name in MODALITIES if name not in on]
    if off:
        with model.off(*off):
            assert all_same(forward_tensors(model, batch | every), expected)


def test_every_modality_changes_the_outcome() -> None:
    """The law of composition can fail: each of two modalities changes the outcome."""
    model = attached(llama(), "touch", "smell")
    batch = texts(model.base, 2, 4)
    touch, smell = felt(2), felt(2, "smell")
    outcomes = [model(**batch, **parts).logits for parts in ({}, touch, smell, touch | smell)]
    assert all(not torch.equal(a, b) for a, b in subsets(outcomes, 2))
