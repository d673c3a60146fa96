"""A changed base: who computes with it, who with the original, and how it goes away again."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from safe_framework.config.schema import StageBSpec
from safe_framework.core.base_model import installed_hooks
from safe_framework.core.build import compile
from safe_framework.core.model import SafeModel
from safe_framework.errors import InjectionError, SafeError
from safe_framework.experimental.base_finetuning.attach import change_base
from safe_framework.utils.hashing import fingerprint
from safe_framework.utils.tensors import bitwise_equal
from safe_framework.verification.laws import base_differences
from tests.experimental.base_finetuning.changed import LAYERS, LORA, changed, moved
from tests.laws.calls import copy_of
from tests.support.toys import (
    BASES,
    ToyEncoder,
    ToyFusion,
    ToyProjector,
    attached,
    felt,
    llama,
    texts,
)

GENERATE: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
DECODERS = {name: BASES[name] for name in ("llama", "gpt2", "llava")}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("spec", [LORA, LAYERS], ids=["lora", "layers"])
def test_a_fresh_change_changes_nothing(name: str, spec: StageBSpec) -> None:
    """Law: until it is trained, a changed base computes the original's bits."""
    model = attached(BASES[name]())
    batch = texts(model.base, 2, 5)
    with torch.no_grad():
        before = model.base(**batch).logits
        change_base(model, spec)
        assert bitwise_equal(model(**batch).logits, before)


@pytest.mark.parametrize("name", BASES)
def test_off_and_the_base_itself_are_the_original(name: str) -> None:
    """Law: with LoRA, off() and a direct call of the base give the original's bits, tokens too."""
    base = BASES[name]()
    bare, model = copy_of(base), changed(base)
    batch = texts(bare, 2, 5)
    with torch.no_grad():
        logits, tokens = bare(**batch).logits, bare.generate(**_prompt(batch), **GENERATE)
        assert not bitwise_equal(model(**batch).logits, logits)
        with model.off():
            assert bitwise_equal(model(**batch, **felt(2)).logits, logits)
            assert bitwise_equal(model.generate(**_prompt(batch), **GENERATE), tokens)
        assert bitwise_equal(model.base(**batch).logits, logits)
        assert not bitwise_equal(model(**batch).logits, logits)


def _prompt(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if key != "decoder_input_ids"}


def test_a_sense_alone_off_leaves_the_changed_base() -> None:
    """Law: off("touch"), gate 0 and an absent sample are the changed base, bit for bit alike."""
    model = changed(llama())
    batch, sample = texts(model.base, 2, 5), felt(2)
    with torch.no_grad():
        plain = model(**batch).logits
        assert bitwise_equal(model(**batch, **sample, gate=0.0).logits, plain)
        with model.off("touch"):
            assert bitwise_equal(model(**batch, **sample).logits, plain)
        with model.original_base():
            assert not bitwise_equal(model(**batch).logits, plain)


def test_other_threads_are_not_affected() -> None:
    """Law: while one thread is inside a changed call, another's off() is the original, bitwise."""
    model = changed(llama())
    batch = texts(model.base, 2, 5)
    with torch.no_grad():
        expected, plain = copy_of(llama())(**batch).logits, model(**batch).logits
    inside, leave, seen = threading.Event(), threading.Event(), {}

    def hold(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is thread:
            inside.set()
            leave.wait(30)

    def work() -> None:
        with torch.no_grad():
            seen["changed"] = model(**batch).logits

    thread = threading.Thread(target=work)
    handle = model.base.get_submodule("model.layers.0.self_attn.v_proj")
    remover = handle.register_forward_pre_hook(hold)
    thread.start()
    assert inside.wait(30)
    with torch.no_grad():
        with model.off():
            assert bitwise_equal(model(**batch).logits, expected)
        assert bitwise_equal(model.base(**batch).logits, expected)
    leave.set()
    thread.join(30)
    remover.remove()
    assert bitwise_equal(seen["changed"], plain)


def test_off_here_is_not_off_there() -> None:
    """Law: while one thread is inside off(), another computes with the changed base."""
    model = changed(llama())
    batch, seen = texts(model.base, 2, 5), []

    def work() -> None:
        with torch.no_grad():
            seen.append(model(**batch).logits)

    with torch.no_grad():
        plain = model(**batch).logits
    with model.off():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(30)
    assert bitwise_equal(seen[0], plain)


def test_lora_touches_no_tensor_and_no_module() -> None:
    """Law: a trained LoRA leaves weights, modules and seal of the base as they were."""
    model = attached(llama())
    before = fingerprint(model.base)
    modules = [name for name, _ in model.base.named_modules()]
    moved(model, LORA)
    model(**texts(model.base, 2, 5)).logits.sum().backward()
    assert fingerprint(model.base) == before
    assert [name for name, _ in model.base.named_modules()] == modules
    assert base_differences(model.base_snapshot, model.base) == []


def test_layers_say_which_tensors_changed() -> None:
    """Law: the seal lets the changed layers pass by name, and still finds any other change."""
    model = changed(llama(), LAYERS)
    assert base_differences(model.base_snapshot, model.base) == []
    with torch.no_grad():
        model.base.get_parameter("model.layers.0.mlp.up_proj.weight").add_(1)
    assert len(base_differences(model.base_snapshot, model.base)) == 1


@pytest.mark.parametrize("spec", [LORA, LAYERS], ids=["lora", "layers"])
def test_detach_gives_the_original_back(spec: StageBSpec) -> None:
    """Law: after detach the base is the original: its bits, its weights, no hook."""
    model = changed(llama(), spec)
    batch = texts(model.base, 2, 5)
    base = model.detach()
    assert installed_hooks(base) == []
    assert fingerprint(base) == fingerprint(llama())
    assert not any(parameter.requires_grad for parameter in base.parameters())
    with torch.no_grad():
        assert bitwise_equal(base(**batch).logits, copy_of(llama())(**batch).logits)


def test_detach_says_that_the_original_is_gone() -> None:
    """Law: where the original weights were not kept, detach warns and what needs them refuses."""
    model = changed(llama(), LAYERS)
    model.base_change.forget_original()
    with (
        pytest.raises(SafeError, match="were not kept\nhint: load the base anew"),
        model.original_base(),
    ):
        pass
    with pytest.warns(RuntimeWarning, match="the base keeps its change"):
        model.detach()


@pytest.mark.parametrize("name", DECODERS)
def test_layers_within_original(name: str) -> None:
    """Law: within original(), layers in place compute the original's bits, and then their own."""
    base = DECODERS[name]()
    bare, model = copy_of(base), changed(base, LAYERS)
    batch = texts(model.base, 2, 5)
    with torch.no_grad():
        plain = model(**batch).logits
        with model.original_base():
            expected = bare(**batch).logits
            assert bitwise_equal(model.base(**batch).logits, expected)
        assert bitwise_equal(model(**batch).logits, plain)
    assert not bitwise_equal(plain, expected)


def test_a_copy_has_a_change_of_its_own() -> None:
    """Law: a copy of a model computes the same, and what is written to it stays its own."""
    model = changed(llama())
    twin = copy.deepcopy(model)
    batch = texts(model.base, 2, 5)
    with torch.no_grad():
        plain = model(**batch).logits
        assert bitwise_equal(twin(**batch).logits, plain)
        for parameter in twin.base_change.tensors(twin.base).values():
            parameter.zero_()
        assert bitwise_equal(model(**batch).logits, plain)
        with model.off():
            assert bitwise_equal(twin(**batch).logits, copy_of(llama())(**batch).logits)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_layers_have_the_same_gradients(reentrant: bool) -> None:
    """Law: layers that are recomputed after the call has ended still add their pairs."""
    model = changed(llama()).train()
    batch = texts(model.base, 2, 5) | felt(2)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        return {name: p.grad.clone() for name, p in model.trainable_parameters().items()}

    expected = gradients()
    assert all(bool(expected[name].any()) for name in expected if "lora_B" in name)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


def test_a_bypassed_change_raises() -> None:
    """Law: a call in which no changed module ran raises, instead of answering unchanged."""
    model = changed(llama())
    model.base_change.remove(model.base)
    with pytest.raises(InjectionError, match="the changed base was bypassed"):
        model(**texts(model.base, 2, 5))


def test_no_sense_can_be_added_later() -> None:
    """Law: a sense that would start from a changed base is refused."""
    model = changed(llama())
    with pytest.raises(SafeError, match=r"no modality can be added.*\nhint: add every"):
        model.add_modality(
            "smell", encoder=ToyEncoder(), projector=ToyProjector(), fusion=ToyFusion()
        )


def _wrong(**keys: Any) -> Callable[[SafeModel], Any]:
    return lambda model: change_base(model, StageBSpec("lora", **keys))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_wrong(layers=(7,)), r"\[stage_b\]: `layers` must be between"),
        (_wrong(targets=("query",)), r"names `query`.*\nhint: linear parts: down_proj, gate_proj"),
        (lambda model: [change_base(model, LORA), change_base(model, LORA)], "changed already"),
    ],
)
def test_what_cannot_be_changed_is_refused(change: Callable[[SafeModel], Any], words: str) -> None:
    """Law: a change that does not fit the base is an error that says what would."""
    with pytest.raises(SafeError, match=words):
        change(attached(llama()))


@pytest.mark.slow
def test_a_compiled_base_is_changed_too() -> None:
    """Law: compiled, changed calls and off() give what they gave: no graph loses the change."""
    model = changed(llama())
    batch = texts(model.base, 2, 5)
    with torch.no_grad():
        before = model(**batch).logits
        compile(model, backend="eager")
        assert bitwise_equal(model(**batch).logits, before)
        with model.off():
            assert bitwise_equal(model(**batch).logits, copy_of(llama())(**batch).logits)
        assert bitwise_equal(model(**batch).logits, before)
