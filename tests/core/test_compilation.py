"""``torch.compile``: no call is ever served by a graph that was made for another kind of call."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import safe_framework
from safe_framework.core.base_model import freeze
from safe_framework.core.model import SafeModel
from safe_framework.errors import InjectionError, UnsupportedBaseError
from tests.laws.calls import all_same, copy_of, forward_tensors
from tests.support.toys import (
    ToyEncoder,
    ToyFusion,
    ToyProjector,
    attached,
    felt,
    llama,
    llava,
    texts,
)

FAST = "eager"
BEST = "inductor" if shutil.which("g++") else "aot_eager"  # inductor needs a C++ compiler

pytestmark = [
    pytest.mark.slow,
    # torch's own, of importing inductor and of looking at a tensor to guard
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


@pytest.fixture(autouse=True)
def _no_graphs() -> Iterator[None]:
    """Start and end without compiled graphs, and fail if torch gives up compiling."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def compiled(model: SafeModel, backend: Any = FAST) -> SafeModel:
    """The same model, compiled."""
    return safe_framework.compile(model, backend=backend)


@pytest.mark.parametrize(("make", "backend"), [(llama, BEST), (llava, "aot_eager")])
def test_each_call_gets_what_it_asks_for(make: Any, backend: str) -> None:
    """On, off, on, absent: on is the eager result to rounding, off the compiled base's bits."""
    base = make()
    unwrapped, model = copy_of(base), attached(base, "touch", "smell")
    batch = texts(unwrapped, 2, 5)
    on = batch | felt(2) | felt(2, "smell", seed=1)
    eager = model(**on).logits
    unwrapped.compile(backend=backend)
    compiled(model, backend)
    with torch.no_grad():
        expected = unwrapped(**batch).logits
        for _ in range(2):
            torch.testing.assert_close(model(**on).logits, eager, atol=1e-4, rtol=1e-4)
            assert not torch.equal(model(**on).logits, expected)
            with model.off():
                assert all_same([model(**on).logits], [expected])
            assert all_same([model(**batch).logits], [expected])
            assert all_same([model(**on, gate=0).logits], [expected])
            assert all_same([model.base(**batch).logits], [expected])


def test_a_graph_of_another_model_is_not_used() -> None:
    """A model of the same class, compiled and called before any hook, leaves no stale graph."""
    batch = texts(llama(), 2, 5)
    other = copy_of(llama())
    other.compile(backend=FAST)
    with torch.no_grad():
        other(**batch)
    model = attached(llama())
    expected = model(**batch, **felt(2)).logits
    torch.testing.assert_close(compiled(model)(**batch, **felt(2)).logits, expected)


def test_bits_of_bfloat16_are_the_compiled_bases() -> None:
    """Hooks are in no graph, so a compiler that rounds by graph rounds as in the unwrapped base."""
    base = llama(num_hidden_layers=3).bfloat16()
    unwrapped, model = copy_of(base), compiled(attached(base), BEST)
    unwrapped.compile(backend=BEST)
    batch = texts(unwrapped, 2, 5)
    with torch.no_grad():
        assert all_same(forward_tensors(model, batch), forward_tensors(unwrapped, batch))


def test_modalities_come_and_go_in_a_compiled_model() -> None:
    """What is attached after compiling is active, and what was removed is not."""
    model = compiled(attached(llama()))
    batch = texts(model.base, 2, 4)
    silent = model(**batch).logits
    model.remove_modality("touch")
    torch.manual_seed(0)
    model.add_modality(
        "smell", encoder=ToyEncoder(), projector=ToyProjector(), fusion=ToyFusion(layers=(1,))
    )
    eager = attached(llama(), "touch", "smell")
    eager.modalities["smell"].load_state_dict(model.modalities["smell"].state_dict())
    active = model(**batch, **felt(2, "smell")).logits
    torch.testing.assert_close(active, eager(**batch, **felt(2, "smell")).logits)
    assert not torch.allclose(active, silent)


def test_gradients_of_a_compiled_model() -> None:
    """Trained compiled, with and without checkpointing, the gradients are the eager ones."""
    model = attached(llama()).train()
    batch = texts(model.base, 2, 4) | felt(2)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        return [p.grad.clone() for p in model.trainable_parameters().values()]

    expected = gradients()
    compiled(model)
    torch.testing.assert_close(gradients(), expected)
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.testing.assert_close(gradients(), expected)
    model.gradient_checkpointing_disable()
    torch.testing.assert_close(gradients(), expected)


def test_every_layer_of_a_deep_base_is_compiled() -> None:
    """Torch's limit of 8 graphs for one function does not stop at the eighth layer."""
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = compiled(attached(llama(num_hidden_layers=10)), count)
    model(**texts(model.base, 2, 4), **felt(2))
    assert len(graphs) == 10


@pytest.mark.parametrize("kind", [{"num_beams": 2}, {"cache_implementation": "static"}])
def test_a_compiled_model_generates_the_same_tokens(kind: dict[str, Any]) -> None:
    """With a sample and without, the tokens are those of the model that was not compiled."""
    model, options = attached(llama()), {"max_new_tokens": 3, "min_new_tokens": 3, **kind}
    batch = texts(model.base, 1, 4)
    on, off = (model.generate(**batch, **parts, **options) for parts in (felt(1), {}))
    compiled(model)
    assert torch.equal(model.generate(**batch, **felt(1), **options), on)
    assert torch.equal(model.generate(**batch, **options), off)
    assert not torch.equal(on, off)


def test_decoding_steps_that_transformers_compiles_use_samples() -> None:
    """With a static cache ``generate`` compiles its steps by itself: never those with a sample."""
    from transformers import CompileConfig

    config = CompileConfig(backend=FAST, mode=None)
    config._compile_all_devices = True  # it does so on accelerators alone
    model = attached(llama())
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "cache_implementation": "static"}
    batch = texts(model.base, 1, 4)
    expected = [model.generate(**batch, **parts, **options) for parts in (felt(1), {})]
    options |= {"compile_config": config}
    silent = model.generate(**batch, **options)
    active = model.generate(**batch, **felt(1), **options)
    assert all_same([active, silent], expected)
    assert not torch.equal(active, silent)


def test_copies_are_not_compiled_and_hold_no_graph() -> None:
    """A copy runs its own weights; compiling it again works."""
    model = compiled(attached(llama()))
    batch = texts(model.base, 1, 4) | felt(1)
    expected = model(**batch).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        model.base.model.layers[0].self_attn.q_proj.weight.data.fill_(float("nan"))
        torch.testing.assert_close(other(**batch).logits, expected)
        torch.testing.assert_close(compiled(other)(**batch).logits, expected)
        model = other


def test_detaching_undoes_compiling() -> None:
    """The base comes back with the attributes that it had, but for being frozen."""
    base = freeze(llama())
    before = [dict(vars(module)) for module in base.modules()]
    model = compiled(attached(base))
    model.gradient_checkpointing_enable()
    names = [name for name, _ in base.named_modules()]
    model(**texts(base, 1, 4), **felt(1))
    assert [name for name, _ in base.named_modules()] == names
    model.detach()
    assert [dict(vars(module)) for module in base.modules()] == before


def in_place(base: nn.Module) -> nn.Module:
    """Compiled by its own method."""
    base.compile(backend=FAST)
    return base


def in_parts(base: nn.Module) -> nn.Module:
    """Its layers compiled, hooks and all."""
    for layer in base.model.layers:
        layer.compile(backend=FAST)
    return base


def wrapped(base: nn.Module) -> nn.Module:
    """Compiled into a new module."""
    return torch.compile(base, backend=FAST)  # type: ignore[no-any-return]  # a module


@pytest.mark.parametrize("way", [in_place, in_parts, wrapped])
@pytest.mark.parametrize("called", [False, True])
def test_a_base_that_is_compiled_already_is_refused(way: Any, called: bool) -> None:
    """The refusal names the function that compiles after attaching."""
    base = way(llama())
    if called:
        base(**texts(llama(), 1, 3))
    with pytest.raises(UnsupportedBaseError, match=r"compiled already\nhint: .*\.compile\(model\)"):
        SafeModel(base)


@pytest.mark.parametrize("way", [in_place, in_parts])
def test_a_base_that_others_compile_later_is_never_stale(way: Any) -> None:
    """A sample that a foreign graph cannot use is an error with its fix; silent calls work."""
    model = attached(llama())
    batch, unwrapped = texts(model.base, 1, 4), copy_of(llama())
    way(model.base), way(unwrapped)
    with torch.no_grad():
        assert all_same([model(**batch).logits], [unwrapped(**batch).logits])
        with pytest.raises(InjectionError, match=r"safe_framework\.compile"):
            model(**batch, **felt(1))


def test_layers_that_others_have_wrapped_use_samples() -> None:
    """Layers replaced by compiled wrappers call their hooks themselves."""
    base = llama()
    for index, layer in enumerate(base.model.layers):
        base.model.layers[index] = torch.compile(layer, backend=FAST)
    model, eager = attached(base), attached(llama())
    batch = texts(llama(), 1, 4) | felt(1)
    torch.testing.assert_close(model(**batch).logits, eager(**batch).logits)
