"""An honest model gets its certificate, on every kind of base."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import safe_framework
from safe_framework import verify
from safe_framework.config.read import parse_recipe
from safe_framework.core.base_model import installed_hooks
from safe_framework.core.build import attach
from safe_framework.core.hook_inventory import hooks_on
from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError
from safe_framework.utils.hashing import fingerprint
from safe_framework.verification.calls import CALLS, OFF_METHODS, calls_to_compare
from safe_framework.verification.certificate import Certificate, Law, Verdict
from safe_framework.verification.laws import base_differences
from tests.support.lanes import slow_but
from tests.support.toys import BASES, ToyFusion, attached, felt, llama, lora, texts, tokenizer


def by_name(certificate: Certificate) -> dict[str, Law]:
    """The laws by what they are called."""
    return {law.name: law for law in certificate.laws}


def mixtral(**changes: Any) -> nn.Module:
    """A mixture of experts, which computes the tokens of all rows together."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, **changes,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


@pytest.mark.parametrize("name", slow_but(["llama"], BASES))
def test_every_call_of_every_base_is_the_base(name: str) -> None:
    """All laws hold or do not apply, in all calls and all ways to be off."""
    model = attached(BASES[name]())
    inputs = texts(model.base, 2, 6) if name == "llava" else None
    certificate = verify(model, inputs=inputs)
    assert certificate.failures == ()
    assert len(certificate.comparisons) == len(CALLS) * len(OFF_METHODS)
    assert [c for c in certificate.comparisons if c.note] == []


@pytest.mark.slow
def test_an_adapter_of_nan_passes() -> None:
    """L2 holds for every weight, and NaN that reaches the outputs is no failure of it."""
    model = attached(llama())
    for parameter in model.trainable_parameters().values():
        parameter.data.fill_(float("nan"))
    laws = by_name(verify(model, calls="quick"))
    holding = ("Untouched", "Off is the base", "Off runs the base's operations", "Plugins propose")
    assert {laws[name].verdict for name in holding} == {Verdict.HOLDS}
    assert laws["Rows"].verdict is Verdict.HOLDS


def test_nothing_is_left_behind() -> None:
    """Weights, hooks, gates, modes and the random state are as they were."""
    model = attached(llama(), "touch", "smell").train()
    model.set_gate(0.25, "smell")
    before = fingerprint(model), model.gates, [id(record.hook) for record in hooks_on(model.base)]
    random = torch.get_rng_state()
    verify(model, calls="quick")
    hooks = [id(record.hook) for record in hooks_on(model.base) if record.ours]
    assert (fingerprint(model), model.gates, hooks) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert model.modality("touch").projector.training
    assert not any(module.training for module in model.base.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modalities.modules())


def test_quick_has_every_call_and_every_way() -> None:
    """The short list leaves out pairs alone."""
    pairs = [(call.name, way) for call, ways in calls_to_compare("quick") for way in ways]
    assert {call for call, _ in pairs} == {call.name for call in CALLS}
    assert {way for _, way in pairs} == set(OFF_METHODS)
    assert len(pairs) < len(CALLS) * len(OFF_METHODS) / 3


@pytest.mark.slow
def test_several_modalities_compose() -> None:
    """L6 is asked of every choice of modalities, and holds."""
    laws = by_name(verify(attached(llama(), "touch", "smell", "taste"), calls="quick"))
    assert laws["Composition"].verdict is Verdict.HOLDS
    assert "6 choices" in laws["Composition"].detail


@pytest.mark.slow
def test_a_base_that_mixes_rows_is_found() -> None:
    """L4 does not apply to experts that see all rows, and the detail says where that was seen."""
    laws = by_name(verify(attached(mixtral()), calls="quick"))
    assert laws["Rows"].verdict is Verdict.NOT_APPLICABLE
    assert "with other words in row" in laws["Rows"].detail
    assert laws["Off is the base"].verdict is Verdict.HOLDS


@pytest.mark.slow
def test_rows_that_run_apart_keep_the_law() -> None:
    """L4 applies to every base if its rows are split."""
    model = attached(mixtral())
    model.split_rows = True
    laws = by_name(verify(model, calls="quick"))
    assert laws["Rows"].verdict is Verdict.HOLDS
    assert "ran apart" in laws["Rows"].detail


def test_a_single_row_cannot_be_mixed() -> None:
    """L4 does not apply to inputs of one row."""
    base = llama()
    laws = by_name(verify(attached(base), inputs=texts(base, 1, 4), calls="quick"))
    assert "single row" in laws["Rows"].detail


def test_samples_can_be_given() -> None:
    """Tensors of a modality among the inputs replace made-up frames."""
    base = llama()
    certificate = verify(attached(base), inputs=texts(base, 2, 4) | felt(2), calls="quick")
    assert certificate.holds


def test_inputs_that_the_base_refuses_are_refused() -> None:
    """What does not run cannot be verified, and is not passed as if it had been."""
    base = llama()
    with pytest.raises(SafeError, match="does not run on the inputs"):
        verify(attached(base), inputs={"input_ids": torch.full((2, 4), 99)})


def test_a_model_without_modalities_is_refused() -> None:
    """There is nothing to switch off."""
    with pytest.raises(SafeError, match="no modality"):
        verify(SafeModel(llama()))


def test_a_call_that_the_base_refuses_is_refused_alike() -> None:
    """The same exception on both sides is the same, and the certificate says so."""
    base = llama(max_position_embeddings=64)
    base.generate = None
    certificate = verify(attached(base), calls="quick")
    laws = by_name(certificate)
    assert "the base itself refuses" in laws["Off is the base"].detail
    (note,) = {c.note for c in certificate.comparisons if c.call == "greedy"}
    assert note.startswith("both raise TypeError: 'NoneType'")
    assert certificate.failures == ()


@pytest.mark.slow
def test_a_base_with_beams_of_its_own_is_served() -> None:
    """What the base's generation config says does not make a greedy call another one."""
    base = llama()
    base.generation_config.num_beams = 3
    assert verify(attached(base), calls="quick").failures == ()


def test_traces_are_written_down() -> None:
    """What was traced has the number of its operations and their hash, alike in all ways."""
    made = [c for c in verify(attached(llama()), calls="quick").comparisons if c.trace]
    assert {c.call for c in made} == {"forward", "greedy"}
    assert len(made) == 2 * len(OFF_METHODS)
    assert len({(c.call, c.operations, c.trace) for c in made}) == 2


@pytest.mark.slow
def test_a_base_that_does_not_repeat_itself_is_found() -> None:
    """Where the base itself gives other bits each time, bits are not asked for."""
    base, chance = llama(), torch.Generator().manual_seed(0)

    def shake(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + torch.randn(output.shape, generator=chance)

    base.model.norm.register_forward_hook(shake)
    laws = by_name(verify(attached(base, "touch", "smell"), calls="quick"))
    assert laws["Off is the base"].verdict is Verdict.NOT_APPLICABLE
    assert "does not repeat itself" in laws["Threads"].detail
    assert laws["Untouched"].verdict is Verdict.HOLDS
    assert [law for law in laws.values() if law.verdict is Verdict.FAILS] == []


# L5


RECIPE = """\
[base]
model = "any/base"

[modalities.touch]
encoder = { use = "whisper", model = "any/encoder" }
projector = { use = "standard", tokens = 2, hidden_dim = 8 }
fusion = { use = "lora", layers = [-1] }
"""


def with_lora(spread: float) -> SafeModel:
    """A toy modality with an adapter whose weights are drawn, or fresh at 0."""
    base = llama()
    fusion = lora(SafeModel(base))
    model = attached(base, fusion=fusion)
    for parameter in fusion.parameters():
        if parameter.requires_grad and spread:
            nn.init.normal_(parameter, std=spread)
    return model


def test_a_fresh_model_is_silent() -> None:
    """L5 is asked of the model itself as long as its deltas are zero."""
    law = by_name(verify(with_lora(0.0), calls="quick"))["Fresh is silent"]
    assert (law.verdict, law.detail) == (Verdict.HOLDS, "the model is fresh")


@pytest.mark.slow
def test_a_trained_model_is_made_anew() -> None:
    """L5 is asked of a fresh modality by the model's recipe, on the same base."""
    model = with_lora(1.0)
    model.built_from = parse_recipe(RECIPE)
    law = by_name(verify(model, calls="quick"))["Fresh is silent"]
    assert (law.verdict, law.detail) == (Verdict.HOLDS, "a fresh sense by the same recipe")
    assert len(installed_hooks(model.base)) == 2


def test_a_recipe_that_starts_with_a_delta_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin whose fresh delta is not zero is caught."""
    monkeypatch.setattr(
        safe_framework.interfaces.registry.fusion_adapters, "load", lambda name: _Aloud
    )
    model = with_lora(1.0)
    model.built_from = parse_recipe(RECIPE)
    law = by_name(verify(model, calls="quick"))["Fresh is silent"]
    assert law.verdict is Verdict.FAILS
    assert law.findings[0].startswith("forward at gate 1: `logits[0, 0, 0]` is ")


class _Aloud(ToyFusion):
    def __init__(self, base: Any, **options: Any) -> None:
        super().__init__(layers=(0,))


# The snapshot of the base


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_keeps_its_snapshot(way: Any) -> None:
    """A copied model is not taken for a broken one, and a broken copy is found."""
    model = attached(llama(), tokenizer=tokenizer())
    other = way(model)
    assert base_differences(other.base_snapshot, other.base, other.tokenizer) == []
    other.base.lm_head.weight.data.add_(1)
    assert base_differences(other.base_snapshot, other.base, other.tokenizer) == [
        "weight `lm_head.weight` holds other numbers"
    ]
    assert base_differences(model.base_snapshot, model.base, model.tokenizer) == []


def test_what_is_offloaded_is_counted_apart() -> None:
    """Weights that are not in memory are counted, and not called the same bits."""
    from safe_framework.verification.laws import tensor_digests, untouched

    base = llama()
    model = attached(base)
    base.lm_head.to("meta")
    law = untouched(base, model.base_snapshot, [], tensor_digests(base), {})
    assert "1 offloaded tensors by shape alone" in law.detail
    assert base_differences(model.base_snapshot, base) == []


@pytest.mark.slow
def test_another_base_than_the_recorded_one_is_found(tmp_path: Path) -> None:
    """One number written behind torch's back is found by the adapter's fingerprint."""
    folder = with_lora(1.0).save_pretrained(tmp_path / "adapter", without_recipe=True)
    model = with_lora(0.0)
    safe_framework.core.build.load_tensors(model, folder)
    assert (
        "as recorded with the adapter" in by_name(verify(model, calls="quick"))["Untouched"].detail
    )
    weight = model.base.model.layers[0].mlp.up_proj.weight
    weight.data[3, 7] += 1
    found = by_name(verify(model, calls="quick"))["Untouched"].findings
    assert "the weights of the base are not those that the adapter was loaded on" in found


def test_attach_records_the_tokenizer() -> None:
    """The vocabulary is recorded with the base, and a processor changes nothing of it."""
    words = tokenizer(eos_token="end", unk_token="unknown")
    model = attach(llama(), words)
    assert model.processor is not None
    assert base_differences(model.base_snapshot, model.base, words) == []
    assert model.base_snapshot.words["count"] == len(words)
