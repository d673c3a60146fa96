"""L3: no fusion adapter, however bad, reaches the base."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from safe_framework.core.layer_hooks import _ACTIVE
from safe_framework.errors import PluginError
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.utils.hashing import fingerprint
from tests.laws.calls import MODES, all_same, copy_of, forward_tensors, generate_tensors
from tests.laws.hostile import (
    CAUGHT,
    HARMLESS_WHEN_OFF,
    HOSTILE,
    AltersLater,
    ConsumesRandomness,
    GivesBfloat16,
    GivesDouble,
    GivesInf,
    GivesNan,
    WritesThroughData,
)
from tests.support.lanes import combinations
from tests.support.toys import ToyFusion, attached, felt, llama, texts


def spoiled(plugin: type[FusionAdapter]) -> tuple[torch.nn.Module, object, dict, dict]:
    """A copy of a base made beforehand, the model with ``plugin``, and a batch's two parts."""
    base = llama()
    untouched = copy_of(base)
    torch.manual_seed(0)
    return untouched, attached(base, fusion=plugin()), texts(base, 2, 4), felt(2)


def try_on(model: object, batch: dict) -> None:
    """One call with the modality on, whatever comes of it."""
    with suppress(PluginError):
        model(**batch)


@pytest.mark.parametrize("plugin", HOSTILE)
def test_off_is_the_base_whatever_the_plugin_did(plugin: type[FusionAdapter]) -> None:
    """L3: before and after a call in which it was on, off is the base's bits."""
    untouched, model, batch, samples = spoiled(plugin)
    before = fingerprint(model.base)
    with torch.no_grad():
        expected = forward_tensors(untouched, batch)
        for _ in range(2):
            with model.off():
                assert all_same(forward_tensors(model, batch | samples), expected)
            assert all_same(forward_tensors(model, batch), expected)
            try_on(model, batch | samples)
            assert _ACTIVE.get() is None
    assert fingerprint(model.base) == before


@pytest.mark.parametrize("plugin", HOSTILE)
def test_off_generation_is_the_base_whatever_the_plugin_did(plugin: type[FusionAdapter]) -> None:
    """L3: sampled with the same seed, a plugin that was on before changes no token."""
    untouched, model, batch, samples = spoiled(plugin)
    try_on(model, batch | samples)
    options = {"do_sample": True}
    expected = generate_tensors(untouched.generate, batch, options)
    with model.off():
        assert all_same(generate_tensors(model.generate, batch | samples, options), expected)


@pytest.mark.parametrize(("plugin", "mode"), combinations(CAUGHT, MODES))
def test_a_broken_plugin_is_named(plugin: type[FusionAdapter], mode: str) -> None:
    """L3: the error names the plugin's class and the modality, and nothing stays active."""
    _, model, batch, samples = spoiled(plugin)
    with MODES[mode](), pytest.raises(PluginError) as caught:
        model(**batch, **samples)
    assert f"{plugin.__module__}.{plugin.__qualname__}" in str(caught.value)
    assert "`touch`" in str(caught.value)
    assert _ACTIVE.get() is None


@pytest.mark.parametrize("plugin", CAUGHT)
def test_a_broken_plugin_is_named_in_generation(plugin: type[FusionAdapter]) -> None:
    """L3: generate raises the same error as forward."""
    _, model, batch, samples = spoiled(plugin)
    with pytest.raises(PluginError, match=plugin.__qualname__):
        model.generate(**batch, **samples, max_new_tokens=2)
    assert _ACTIVE.get() is None


def test_the_cause_of_a_plugins_failure_is_chained() -> None:
    """The plugin's own exception is the error's cause."""
    _, model, batch, samples = spoiled(CAUGHT[2])
    with pytest.raises(PluginError, match="raised KeyError") as caught:
        model(**batch, **samples)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(("plugin", "mode"), combinations(HARMLESS_WHEN_OFF, MODES))
def test_rows_without_the_modality_keep_their_bits(plugin: type[FusionAdapter], mode: str) -> None:
    """L3 and L4: whatever a plugin gives for one row, the other row is the base's."""
    untouched, model, batch, _ = spoiled(plugin)
    with MODES[mode]():
        mixed = model(**batch, **felt(2, present=[False, True])).logits
        expected = untouched(**batch).logits
    assert all_same([mixed[0]], [expected[0]])
    assert not all_same([mixed[1]], [expected[1]])


@pytest.mark.parametrize("plugin", [GivesNan, GivesInf])
def test_gate_zero_is_a_branch_and_no_product(plugin: type[FusionAdapter]) -> None:
    """L3: a row whose gate is 0 keeps its bits beside a NaN or Inf delta of another row."""
    untouched, model, batch, samples = spoiled(plugin)
    mixed = model(**batch, **samples, gate=torch.tensor([0.5, 0.0])).logits
    assert all_same([mixed[1]], [untouched(**batch).logits[1]])
    assert mixed[0].isnan().any()


@pytest.mark.parametrize("plugin", [WritesThroughData, AltersLater])
def test_what_a_plugin_overwrites_is_its_own_copy(plugin: type[FusionAdapter]) -> None:
    """L3: writing through ``.data``, or later, changes nothing of what a call returns."""
    _, model, batch, samples = spoiled(plugin)
    _, honest, _, _ = spoiled(ToyFusion)
    with torch.no_grad():
        seen = forward_tensors(model, batch | samples)
        assert all_same(seen, forward_tensors(honest, batch | samples))


@pytest.mark.parametrize("plugin", [GivesDouble, GivesBfloat16])
def test_a_delta_of_another_dtype_is_cast(plugin: type[FusionAdapter]) -> None:
    """The hidden states keep their dtype, and the delta its effect."""
    _, model, batch, samples = spoiled(plugin)
    with torch.no_grad():
        on, off = model(**batch, **samples).logits, model(**batch).logits
    assert on.dtype == torch.float32
    assert not torch.equal(on, off)


def test_a_plugin_that_draws_random_numbers_moves_nobody_else() -> None:
    """L3: after it was on, the caller's generator is where the caller can set it again."""
    _, model, batch, samples = spoiled(ConsumesRandomness)
    with model.off():
        before = torch.get_rng_state()
        model(**batch, **samples)
        assert torch.equal(torch.get_rng_state(), before)
