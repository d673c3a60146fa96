"""What is found out of a base, and what is left out by it."""

from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.training.compute.base_properties import (
    NO_PROPERTIES,
    BaseProperties,
    find_base_properties,
)
from safe_framework.training.compute.calls import ForwardCall
from tests.support.toys import LAYERS, PAD, gpt2, llama, mixtral, opt
from tests.training.conftest import model_with_modality
from tests.training.test_losses import Headless, as_kind

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, PAD, PAD, PAD]])


def known(make: Any) -> BaseProperties:
    """What is found out of a base."""
    return find_base_properties(model_with_modality(make()))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_usual_base_has_every_property(make: Any) -> None:
    """Law: causality, a plain head and every layer's feed-forward module are found."""
    model = model_with_modality(make())
    found = find_base_properties(model)
    assert found.plain_head
    assert found.causal
    assert found.rows_independent
    layers = list(model.stack.of(model.base))
    assert list(found.feed_forwards) == [layer.mlp for layer in layers]
    assert found.last_feed_forward is layers[-1].mlp
    assert len(layers) == LAYERS


def test_experts_compute_each_position_alone() -> None:
    """Law: a mixture of experts is either left whole or gives what it gave."""
    found = known(mixtral)
    assert found.causal
    assert len(found.feed_forwards) in (0, LAYERS)


def test_layers_without_such_a_module_run_whole() -> None:
    """Law: where the layer itself holds the two matrices, nothing of it is narrowed."""
    found = known(opt)
    assert found.causal
    assert not found.feed_forwards
    assert found.last_feed_forward is None


def test_a_base_without_a_head_is_still_causal() -> None:
    """Law: what is found of a base does not hang on its other properties."""
    found = known(as_kind(Headless))
    assert not found.plain_head
    assert found.causal
    assert found.feed_forwards


def hooked(where: str, change: Any) -> Any:
    """Makes a Llama whose module gives something else."""

    def make() -> nn.Module:
        base = llama()
        base.get_submodule(where).register_forward_hook(lambda module, args, out: change(out))
        return base

    return make


def looking_back(out: Tensor) -> Tensor:
    """Each position with all before it."""
    return out + 0.1 * out.cumsum(1)


def test_a_base_that_looks_ahead_is_not_causal() -> None:
    """Law: where a token changes what is before it, no token behind another is left out."""
    make = hooked("model.layers.0.mlp", lambda out: out + 0.1 * out.mean(1, keepdim=True))
    model = model_with_modality(make())
    found = find_base_properties(model)
    assert not found.causal
    assert found.rows_independent
    assert list(found.feed_forwards) == [model.base.model.layers[1].mlp]
    positions = torch.zeros_like(IDS, dtype=torch.bool)
    positions[0, 1] = True
    whole = model.base(input_ids=IDS).logits[positions]
    call = found.truncated(ForwardCall({"input_ids": IDS}, positions))
    with found.computing_only(call.positions):
        given = model.base(**call.inputs).logits[positions]
    torch.testing.assert_close(given, whole)


def test_a_base_that_mixes_rows_is_found() -> None:
    """Law: where a row changes another, no calls are made as one."""
    make = hooked("model.layers.1.mlp", lambda out: out + 0.1 * out.mean(0, keepdim=True))
    found = known(make)
    assert found.causal
    assert not found.rows_independent


@pytest.mark.parametrize(("part", "independent"), [(1e-7, True), (1e-3, False)])
def test_rounding_mixes_no_rows(part: float, independent: bool) -> None:
    """Law: a row may change another by as much as the order of a sum does, and by no more."""
    make = hooked("model.layers.1.mlp", lambda out: out + part * out.mean(0, keepdim=True))
    assert known(make).rows_independent is independent


def test_a_module_that_mixes_positions_is_left_whole() -> None:
    """Law: a module of its layer's shape that attends back is not taken for a feed-forward one."""
    make = hooked("model.layers.0.mlp", looking_back)
    model = model_with_modality(make())
    found = find_base_properties(model)
    assert found.causal
    assert list(found.feed_forwards) == [model.base.model.layers[1].mlp]


def test_mixing_behind_the_last_layer_is_found() -> None:
    """Law: where what is read depends on other positions of the last layer, all of it runs."""
    found = known(hooked("model.norm", looking_back))
    assert found.causal
    assert not found.feed_forwards


class Choosy(nn.Module):
    """Refuses one token."""

    def forward(self, out: Tensor) -> Tensor:
        """Nothing but an error."""
        raise RuntimeError("not this word")


def test_a_base_that_refuses_the_tokens_is_left_whole() -> None:
    """Law: a base on which nothing can be tried is trained as it is."""
    model = model_with_modality(llama())
    refuse = Choosy()
    model.base.model.embed_tokens.register_forward_hook(
        lambda module, args, out: refuse(out) if (args[0] == 1).any() else None
    )
    assert attrs.astuple(find_base_properties(model)) == (True, False, False, (), None, False)


MACHINES = [torch.OutOfMemoryError("out of memory"), OSError(28, "No space left"), MemoryError()]


def failing(model: SafeModel, error: Exception, when: Any) -> None:
    """Let calls of the base fail when their keywords are such."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if when(kwargs):
            raise error

    model.base.model.register_forward_pre_hook(hook, with_kwargs=True)


@pytest.mark.parametrize("error", MACHINES)
def test_what_is_not_the_bases_doing_is_raised(error: Exception) -> None:
    """Law: a lack of memory or disk is no property of the base, whichever trial meets it."""
    for when in (
        lambda kwargs: kwargs["input_ids"].shape[1] == 2,  # the first call
        lambda kwargs: len(kwargs["input_ids"]) == 2,  # that of two texts
        lambda kwargs: kwargs.get("position_ids") is not None,  # that of packed ones
    ):
        model = model_with_modality(llama())
        failing(model, error, when)
        with pytest.raises(type(error)):
            find_base_properties(model)


def test_a_base_that_takes_no_positions_is_not_packed() -> None:
    """Law: what a base raises of packed texts costs packing, and nothing else."""
    model = model_with_modality(llama())
    error = TypeError("no positions of yours")
    failing(model, error, lambda kwargs: kwargs.get("position_ids") is not None)
    found = find_base_properties(model)
    assert not found.packs
    assert found.causal
    assert found.feed_forwards


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), min_size=12, max_size=12), st.sampled_from([llama, gpt2]))
def test_what_is_read_is_what_a_whole_call_gives(chosen: list[bool], make: Any) -> None:
    """Law: at the positions, logits and gradients are those of a call that leaves nothing out."""
    model = model_with_modality(make())
    model.base.double()
    positions = torch.tensor(chosen).view(2, 6)
    found = []
    for properties in (find_base_properties(model), NO_PROPERTIES):
        call = properties.truncated(ForwardCall({"input_ids": IDS}, positions))
        embedded = model.base.get_input_embeddings()(call.inputs["input_ids"]).detach()
        embedded.requires_grad_()
        with properties.computing_only(call.positions):
            logits = model.base(inputs_embeds=embedded).logits[call.positions]
        (gradient,) = torch.autograd.grad(logits.square().sum(), embedded, allow_unused=True)
        wide = nn.functional.pad(gradient, (0, 0, 0, 6 - gradient.shape[1]))
        found.append((logits, wide))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_feed_forwards_compute_what_is_needed(model: SafeModel) -> None:
    """Law: they compute nothing behind the last position, and the last one only the positions."""
    seen: list[int] = []
    properties = find_base_properties(model)
    for module in properties.feed_forwards:
        module.gate_proj.register_forward_hook(
            lambda _, args, out: seen.append(out[..., 0].numel())
        )
    positions = torch.zeros_like(IDS, dtype=torch.bool)
    positions[0, 3] = positions[1, 0] = positions[1, 2] = True
    call = properties.truncated(
        ForwardCall({"input_ids": IDS, "touch__frames": torch.ones(2, 6)}, positions)
    )
    assert call.inputs["input_ids"].shape == (2, 4)
    assert call.inputs["touch__frames"].shape == (2, 6)
    with properties.computing_only(call.positions):
        model.base(input_ids=call.inputs["input_ids"])
    assert seen == [4 + 3, 3]
    model.base(input_ids=IDS)
    assert seen[2:] == [12, 12]


def test_a_module_that_is_called_otherwise_is_left_alone(model: SafeModel) -> None:
    """Law: a call of another shape within the block runs whole."""
    properties = find_base_properties(model)
    positions = torch.zeros_like(IDS, dtype=torch.bool)
    positions[0, 0] = True
    for other in (IDS[:1], IDS[:1, :1]):
        whole = model.base(input_ids=other).logits
        with properties.computing_only(positions):
            assert torch.equal(model.base(input_ids=other).logits, whole)
