"""Gradient checkpointing: the same gradients, for less memory, and the base as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.core.segments import is_segments
from safe_framework.errors import SafeError, UnsupportedBaseError
from safe_framework.utils.hashing import fingerprint
from safe_framework.utils.tensors import bitwise_equal
from tests.laws.calls import all_same, copy_of, forward_tensors, generate_tensors
from tests.support.lanes import combinations
from tests.support.tolerance import BACKWARD, assert_same_sums
from tests.support.toys import BASES, attached, felt, llama, opt, texts

KINDS = {"reentrant": {"use_reentrant": True}, "other": {"use_reentrant": False}, "default": None}
BASES_WITH_DROPOUT = BASES | {"opt": opt}
WAYS = ["on", "off", "absent", "no_grad", "eval", "generate"]


def training(base: nn.Module) -> tuple[SafeModel, dict[str, Tensor]]:
    """A base with two modalities in training mode, and a batch in which one row has only one."""
    model = attached(base, "touch", "smell").train()
    return model, texts(base, 2, 5) | felt(2) | felt(2, "smell", [True, False], seed=1)


def gradients(model: SafeModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of every trainable parameter, after one backward pass."""
    model.zero_grad()
    model(**batch, labels=batch.get("decoder_input_ids", batch["input_ids"])).loss.backward()
    return {name: p.grad.clone() for name, p in model.trainable_parameters().items()}


def runs(model: SafeModel) -> list[int]:
    """How often each layer has run from now on; what it runs first counts."""
    layers = model.stack.of(model.base)
    counts = [0] * len(layers)

    def count(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[index] += 1

        return hook

    for index, layer in enumerate(layers):
        leaf = next(m for m in layer.modules() if not list(m.children()))
        leaf.register_forward_hook(count(index))
    return counts


@pytest.mark.parametrize(("name", "kind"), combinations(BASES_WITH_DROPOUT, KINDS))
def test_gradients_are_those_without(name: str, kind: str) -> None:
    """Either kind gives every parameter its gradient, also in bases that have dropout."""
    model, batch = training(BASES_WITH_DROPOUT[name]())
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable(KINDS[kind])
    seen = gradients(model, batch)
    assert seen.keys() == expected.keys()
    for key, gradient in expected.items():
        if kind == "reentrant":  # its forward pass runs without grad mode: other kernels
            assert_same_sums(seen[key], gradient, BACKWARD)
        else:
            assert bitwise_equal(seen[key], gradient)
        assert bool(gradient.any()) is not is_segments(key)  # of second samples: there is none


@pytest.mark.parametrize("kind", KINDS)
def test_layers_run_again_in_the_backward_pass(kind: str) -> None:
    """Layers above the first fused one run twice; those below need no gradient and run once."""
    model, batch = training(llama(num_hidden_layers=4))
    model.remove_modality("touch")
    batch = {key: value for key, value in batch.items() if not key.startswith("touch")}
    counts = runs(model)
    model.gradient_checkpointing_enable(KINDS[kind])
    gradients(model, batch)
    assert counts == [1, 2, 2, 2]


def test_less_is_kept_for_the_backward_pass() -> None:
    """The layers' activations are not among what autograd keeps."""
    model, batch = training(llama())

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            model(**batch)
        return sum(sizes)

    before = kept()
    model.gradient_checkpointing_enable()
    assert kept() < before / 2


@pytest.mark.parametrize(("kind", "way"), combinations(KINDS, WAYS))
def test_other_calls_are_not_recomputed(kind: str, way: str) -> None:
    """Every call has the bits that it has without checkpointing."""
    model, batch = training(llama())
    plain = {key: value for key, value in batch.items() if "__" not in key}
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable(KINDS[kind])

    def call(model: SafeModel) -> list[Tensor]:
        if way == "generate":
            return generate_tensors(model.generate, batch, {"num_beams": 2})
        if way == "off":
            with model.off():
                return forward_tensors(model, batch)
        model.train(way != "eval")
        with torch.set_grad_enabled(way != "no_grad"):
            return forward_tensors(model, plain if way == "absent" else batch)

    expected = call(model)
    counts = runs(other)
    assert all_same(call(other), expected)
    assert len(set(counts)) == 1
    if way in ("off", "absent"):
        assert all_same(expected, forward_tensors(copy_of(llama()), plain))


def test_embeddings_have_the_bases_gradient_through_an_off_call() -> None:
    """An off call is not recomputed, whatever needs a gradient."""
    model, _ = training(llama())
    model.gradient_checkpointing_enable({"use_reentrant": True})
    found = []
    for called in (model, copy_of(llama())):
        torch.manual_seed(5)
        embeddings = torch.randn(2, 4, 16, requires_grad=True)
        called(inputs_embeds=embeddings).logits.square().sum().backward()
        found.append(embeddings.grad)
    assert all_same(found[:1], found[1:])


def test_disabling_leaves_nothing_behind() -> None:
    """Enabled or not, weights and module modes are the base's; afterwards every attribute is."""
    base = llama()
    model, batch = training(base)
    before = [dict(vars(module)) for module in base.modules()]
    weights = fingerprint(base)
    model.gradient_checkpointing_enable()
    gradients(model, batch)
    assert fingerprint(base) == weights
    assert not any(module.training for module in base.modules())
    model.gradient_checkpointing_disable()
    assert [dict(vars(module)) for module in base.modules()] == before
    counts = runs(model)
    gradients(model, batch)
    assert counts == [1, 1]
    model.gradient_checkpointing_enable()
    assert not any("forward" in vars(layer) for layer in model.detach().model.layers)


def test_a_forward_that_was_set_before_comes_back() -> None:
    """A layer whose forward was already an attribute, as accelerate sets it, keeps that one."""
    base = llama()
    layer = base.model.layers[1]
    mine = layer.forward = lambda *args, _own=layer.forward, **kwargs: _own(*args, **kwargs)
    model, batch = training(base)
    model.gradient_checkpointing_enable()
    gradients(model, batch)
    model.gradient_checkpointing_disable()
    assert layer.forward is mine


@pytest.mark.parametrize("given", [{"use_cache": True}, {"past_key_values": object()}])
def test_a_cache_is_refused(given: dict[str, Any]) -> None:
    """A cache that a layer would fill twice is an error, not dropped."""
    model, batch = training(llama())
    model.gradient_checkpointing_enable()
    with pytest.raises(SafeError, match=r"cannot use a cache.*\nhint: .*past_key_values"):
        model(**batch, **given)
    assert model.eval()(**batch, use_cache=True).past_key_values is not None


def test_a_base_that_caches_against_its_orders_is_refused() -> None:
    """A base that hands its layers a cache although it was asked not to gives no wrong gradient."""
    model, batch = training(llama())
    model.base.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "use_cache": True}), with_kwargs=True
    )
    model.gradient_checkpointing_enable()
    with pytest.raises(UnsupportedBaseError, match="was handed a cache"):
        model(**batch)


def test_copies_recompute_their_own_weights() -> None:
    """A copy of a checkpointed model is one too, and holds nothing of the original."""
    model, batch = training(llama())
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        counts = runs(other)
        model.base.model.layers[0].self_attn.q_proj.weight.data.fill_(float("nan"))
        seen = gradients(other, batch)
        assert all(bitwise_equal(seen[key], expected[key]) for key in expected)
        assert counts == [2, 2]
        model = other


def test_two_models_on_one_base_keep_their_own_ways() -> None:
    """Checkpointing in one model does not make the other recompute."""
    base = llama()
    (first, _), second = training(base), attached(base).train()
    first.gradient_checkpointing_enable()
    counts = runs(first)
    second(**texts(base, 2, 5), **felt(2)).logits.sum().backward()
    assert counts == [1, 1]


def test_the_hugging_face_trainer_turns_it_on(tmp_path: Any) -> None:
    """The Trainer's own argument reaches the model."""
    from transformers import Trainer, TrainingArguments

    model, batch = training(llama())
    rows = [{key: value[row] for key, value in batch.items()} for row in range(2)]
    rows = [row | {"labels": row["input_ids"]} for row in rows]
    counts = runs(model)
    name = "activation_checkpointing"
    if not hasattr(TrainingArguments, name):
        name = "gradient_checkpointing"  # its name before transformers 5.20
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to="none",
        disable_tqdm=True, remove_unused_columns=False, save_strategy="no", use_cpu=True,
        dataloader_pin_memory=False, **{name: True},
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert counts == [4, 4]  # twice in the step; before it, two calls ask how the loss counts


@pytest.mark.parametrize("choice", [{"every_n_layers": 2}, {"offload": True}])
def test_what_is_not_done_is_refused(choice: dict[str, Any]) -> None:
    """A choice of the Trainer's that would be ignored is an error that names it."""
    model, _ = training(llama())
    with pytest.raises(SafeError, match=next(iter(choice))):
        model.activation_checkpointing_enable(**choice)
    model.activation_checkpointing_enable(every_n_layers=1, offload=False)
