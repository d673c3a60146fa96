"""The laws of a fusion adapter, for every shipped one in each of its variants."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.core.build import load_tensors
from safe_framework.core.model import SafeModel
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.registry import fusion_adapters
from safe_framework.interfaces.types import Tokens
from safe_framework.utils.tensors import bitwise_equal
from tests.laws.calls import all_same, forward_tensors
from tests.support.fusions import CLASSES, VARIANTS, fresh, learned, with_modality
from tests.support.lanes import combinations, slow_but
from tests.support.tolerance import ATTENTION, FORWARD, assert_same_sums
from tests.support.toys import HIDDEN, LAYERS, felt, gpt2, llama, llava, t5, texts

ROWS, LENGTH, COUNT = 3, 5, 4
TERMS = ATTENTION + 6 * HIDDEN  # at most: attention, and a feed-forward part behind it
# The variant that is named as its adapter has the adapter's own defaults.
every_variant = pytest.mark.parametrize("variant", slow_but(CLASSES, VARIANTS))


def every_variant_with(name: str, values: Iterable[Any]) -> pytest.MarkDecorator:
    """Every variant with each value of another argument."""
    return pytest.mark.parametrize(("variant", name), combinations(VARIANTS, values))


def adapter(variant: str, *, trained: bool = True, **options: Any) -> FusionAdapter:
    """One for the tiny Llama."""
    fusion = fresh(variant, SafeModel(llama()).facts(), **options)
    return learned(fusion) if trained else fusion


def hidden(seed: int = 0) -> Tensor:
    """Hidden states of a batch."""
    return torch.randn(ROWS, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(seed))


def tokens(seed: int = 5) -> Tokens:
    """Tokens of a batch, of which some are masked."""
    values = torch.randn(ROWS, COUNT, HIDDEN, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(ROWS, COUNT, dtype=torch.bool)
    mask[1, 2:] = False
    return Tokens(values, mask)


def test_every_shipped_adapter_is_here() -> None:
    """Law: the laws of this file are asked of each adapter that an entry point names."""
    mine = {p.name: p.load() for p in fusion_adapters.points() if p.dist.name == "safe-framework"}
    assert mine == CLASSES
    assert {name for name, _ in VARIANTS.values()} == set(CLASSES)


@every_variant_with("init", ["base", "random"])
def test_fresh_is_silent(variant: str, init: str) -> None:
    """Law: a new adapter's delta is exactly zero, at every layer."""
    fusion = adapter(variant, trained=False, init=init)
    memory = fusion.remember(tokens())
    assert not any(fusion(hidden(), memory, layer).any() for layer in fusion.layers)


@every_variant
def test_delta_shape(variant: str) -> None:
    """Law: the delta has the shape of the hidden states; once trained it is not zero."""
    fusion = adapter(variant)
    for layer in fusion.layers:
        delta = fusion(hidden(), fusion.remember(tokens()), layer)
        assert delta.shape == (ROWS, LENGTH, HIDDEN)
        assert delta.abs().min(-1).values.all()


@every_variant
def test_hands_off(variant: str) -> None:
    """Law: neither hidden states nor tokens nor the memory are written to."""
    fusion, states, given = adapter(variant), hidden(), tokens()
    memory = fusion.remember(given)
    before = {name: tensor.clone() for name, tensor in memory.tensors.items()}
    for layer in fusion.layers:
        fusion(states, memory, layer)
    assert bitwise_equal(states, hidden())
    assert bitwise_equal(given.values, tokens().values)
    assert all(bitwise_equal(memory.tensors[name], tensor) for name, tensor in before.items())


@every_variant
def test_length_independent(variant: str) -> None:
    """Law: a position's delta depends on no other position, earlier or later."""
    fusion = adapter(variant)
    memory = fusion.remember(tokens())
    for layer in fusion.layers:
        whole = fusion(hidden(), memory, layer)
        for start, end in [(0, 1), (0, 3), (1, 4), (LENGTH - 1, LENGTH)]:
            part = fusion(hidden()[:, start:end], memory, layer)
            assert_same_sums(part, whole[:, start:end], TERMS)


@every_variant_with("value", [1e6, -1e6, float("nan"), float("inf")])
def test_masked_tokens_have_no_effect(variant: str, value: float) -> None:
    """Law: what a masked token holds changes no bit of the delta."""
    fusion, given = adapter(variant), tokens()
    values = given.values.masked_fill(~given.mask.unsqueeze(-1), value)
    for layer in fusion.layers:
        expected = fusion(hidden(), fusion.remember(given), layer)
        seen = fusion(hidden(), fusion.remember(Tokens(values, given.mask)), layer)
        assert bitwise_equal(seen, expected)


@every_variant
def test_a_masked_token_is_as_if_not_there(variant: str) -> None:
    """Law: a row's delta is that of the tokens that its mask leaves."""
    fusion, given = adapter(variant), tokens()
    left = Tokens(given.values[1:2, :2], given.mask[1:2, :2])
    for layer in fusion.layers:
        expected = fusion(hidden(), fusion.remember(given), layer)[1:2]
        seen = fusion(hidden()[1:2], fusion.remember(left), layer)
        assert_same_sums(seen, expected, TERMS)


@every_variant
def test_a_row_attends_to_its_own_tokens(variant: str) -> None:
    """Law: another sample's tokens do not reach a row; its own do."""
    fusion, given, other = adapter(variant), tokens(), tokens()
    other.values[2] += torch.linspace(-1, 1, HIDDEN)
    for layer in fusion.layers:
        expected = fusion(hidden(), fusion.remember(given), layer)
        seen = fusion(hidden(), fusion.remember(other), layer)
        assert torch.equal(seen[:2], expected[:2])
        assert not torch.equal(seen[2], expected[2])


@every_variant
def test_rows_of_a_memory_are_rows_of_a_batch(variant: str) -> None:
    """Law: beams, which repeat a memory's rows, get the deltas of the rows that they repeat."""
    fusion, order = adapter(variant), torch.tensor([2, 0, 0, 1])
    memory = fusion.remember(tokens())
    for layer in fusion.layers:
        expected = fusion(hidden(), memory, layer)[order]
        seen = fusion(hidden()[order], memory.rows(order), layer)
        assert_same_sums(seen, expected, TERMS)


# Gradients


QKV = {"query", "key", "value"}
LATE = {  # parts of the names of parameters that have a gradient only once others have moved from 0
    "cross_attention": QKV,
    "cross_attention, plain": QKV,
    "cross_attention, nothing": {*QKV, "nothing"},
    "gated": {*QKV, "gates"},
    "lora": {*QKV, "lora_A", "nothing"},
    "lora, rslora": {*QKV, "lora_A", "nothing"},
    "lora, dora": {*QKV, "lora_A", "nothing"},
    "multilayer": {*QKV, "scales"},
    "multilayer, shared": {*QKV, "nothing", "scales"},
    "tanh_gated": {*QKV, "output", "norm", "feed_forward"},
}


def without_gradient(fusion: FusionAdapter) -> set[str]:
    """Trainable parameters that no element of a random loss's gradient reaches."""
    fusion.zero_grad()
    memory = fusion.remember(tokens())
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(ROWS, LENGTH, HIDDEN, generator=generator)
    sum((fusion(hidden(), memory, layer) * weights).sum() for layer in fusion.layers).backward()
    trainable = {name: p.grad for name, p in fusion.named_parameters() if p.requires_grad}
    assert trainable
    return {n for n, gradient in trainable.items() if gradient is None or not gradient.any()}


@every_variant
def test_every_trainable_parameter_learns(variant: str) -> None:
    """Law: each gets a gradient from a fresh start, or after the step that moves what is zero.

    Only the first halves of LoRA pairs before the output need one more: their second halves start
    at zero too.
    """
    fusion = adapter(variant, trained=False)
    late = without_gradient(fusion)
    trainable = [name for name, p in fusion.named_parameters() if p.requires_grad]
    assert late == {name for name in trainable if LATE[variant] & set(name.split("."))}
    optimizer = torch.optim.SGD((p for p in fusion.parameters() if p.requires_grad), lr=0.01)
    optimizer.step()
    assert all("lora_A" in name for name in without_gradient(fusion))
    optimizer.step()
    assert not without_gradient(fusion)


@every_variant
def test_a_step_from_a_fresh_start_changes_outputs(variant: str) -> None:
    """Law: although its delta is zero, a fresh adapter can start: one step moves the delta."""
    fusion = adapter(variant, trained=False)
    without_gradient(fusion)
    torch.optim.SGD((p for p in fusion.parameters() if p.requires_grad), lr=0.1).step()
    assert all(fusion(hidden(), fusion.remember(tokens()), k).any() for k in fusion.layers)


@every_variant
def test_tokens_get_a_gradient(variant: str) -> None:
    """Law: a projector learns through the adapter."""
    fusion, given = adapter(variant), tokens()
    given.values.requires_grad_()
    (fusion(hidden(), fusion.remember(given), 0) ** 2).sum().backward()
    gradient = given.values.grad
    assert gradient is not None
    assert torch.equal(gradient.any(-1), given.mask)


# On a base


@every_variant_with("base", [llama, gpt2, t5, llava])
def test_cached_and_uncached_decoding_agree(variant: str, base: Any) -> None:
    """Law: greedy tokens come the same with a cache and without, and are not the base's."""
    model = with_modality(variant, base(), trained=True)
    batch = texts(model.base, 2, 4) | felt(2)
    batch.pop("decoder_input_ids", None)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cached = model.generate(**batch, **options)
    assert torch.equal(cached, model.generate(**batch, **options, use_cache=False))
    with model.off():
        assert not torch.equal(cached, model.generate(**batch, **options))


@every_variant
def test_a_prompt_in_chunks_is_the_whole_prompt(variant: str) -> None:
    """Law: logits are those of the whole text, wherever it is cut into calls with a cache."""
    model = with_modality(variant, llama(), trained=True)
    ids, sample = texts(model.base, 2, 7)["input_ids"], felt(2)
    whole, cache, parts = model(input_ids=ids, **sample).logits, None, []
    for start, end in [(0, 3), (3, 4), (4, 7)]:
        out = model(input_ids=ids[:, start:end], **sample, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    assert_same_sums(torch.cat(parts, 1), whole, FORWARD + LAYERS * TERMS)


@every_variant
def test_a_row_whose_tokens_are_all_masked_is_the_bases(variant: str) -> None:
    """L4: the core leaves such a row out; the other row is changed, and no NaN appears."""
    model = with_modality(variant, llama(), trained=True)
    batch, samples = texts(model.base, 2, 4), felt(2)
    samples["touch__mask"][1] = False
    with torch.no_grad():
        active, base = model(**batch, **samples).logits, model(**batch).logits
    assert bitwise_equal(active[1], base[1])
    assert not torch.equal(active[0], base[0])
    assert active.isfinite().all()


@every_variant
def test_a_bfloat16_base_takes_a_float32_adapter(variant: str) -> None:
    """Law: logits keep the base's dtype, every trainable parameter its own and its gradient."""
    model = with_modality(variant, llama().bfloat16(), trained=True)
    batch = texts(model.base, 2, 4)
    out = model(**batch, **felt(2), labels=batch["input_ids"])
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    parameters = model.trainable_parameters().values()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in parameters)


@every_variant
def test_an_adapter_in_bfloat16_stays_near(variant: str) -> None:
    """Law: rounded to bfloat16, an adapter still gives its delta to a few per cent."""
    fusion, exact = adapter(variant).bfloat16(), adapter(variant)
    given = Tokens(tokens().values.bfloat16(), tokens().mask)
    seen = fusion(hidden().bfloat16(), fusion.remember(given), 0).float()
    expected = exact(hidden(), exact.remember(tokens()), 0)
    assert (seen - expected).norm() < 0.1 * expected.norm()


@every_variant_with("init", ["base", "random"])
def test_a_round_trip_keeps_every_bit(variant: str, init: str, tmp_path: Path) -> None:
    """Law: what is saved, loaded into another construction, gives the same bits."""
    first = with_modality(variant, llama(), trained=True, init=init)
    first.save_pretrained(tmp_path / "adapter", without_recipe=True)
    second = with_modality(variant, llama(), trained=False, init=init)
    with torch.no_grad():
        for parameter in second.trainable_parameters().values():
            parameter.fill_(7.0)
    load_tensors(second, tmp_path / "adapter")
    batch = texts(first.base, 2, 4) | felt(2)
    with torch.no_grad():
        assert all_same(forward_tensors(second, batch), forward_tensors(first, batch))


@every_variant
def test_the_base_is_not_shared(variant: str) -> None:
    """L1: an adapter's projections are copies; the base's own are out of its reach."""
    base = llama()
    fusion = fresh(variant, SafeModel(base).facts())
    own = {p.data_ptr() for p in fusion.parameters()}
    assert not own & {p.data_ptr() for p in base.parameters()}
