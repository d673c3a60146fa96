"""Bases that others have wrapped, moved or converted: on and off are what they are without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from safe_framework.core.model import SafeModel
from safe_framework.utils.hashing import fingerprint
from safe_framework.utils.tensors import bitwise_equal
from tests.laws.calls import all_same, copy_of, forward_tensors
from tests.support.toys import LAYERS, attached, felt, llama, lora, texts, tokenizer

CPU = torch.device("cpu")


def asked(base: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch, and the same batch with samples of two modalities."""
    batch = texts(base, 2, 5)
    return batch, batch | felt(2) | felt(2, "smell", [True, False], seed=1)


def answers(model: SafeModel, batch: dict[str, Tensor]) -> list[Tensor]:
    """Logits, hidden states and greedy tokens."""
    with torch.no_grad():
        tokens = model.generate(**batch, max_new_tokens=3, min_new_tokens=3)
        return [*forward_tensors(model, batch), tokens]


def gradients(model: SafeModel, call: Callable[..., Any], batch: dict[str, Tensor]) -> list[Tensor]:
    """Of every trainable parameter, after one backward pass through ``call``."""
    model.zero_grad()
    call(**batch, labels=batch["input_ids"]).loss.backward()
    return [parameter.grad.clone() for parameter in model.trainable_parameters().values()]


# Offloaded by accelerate


def offloaded(base: nn.Module, folder: Path) -> nn.Module:
    """Every weight waits in memory."""
    return cpu_offload(base, execution_device=CPU)


def dispatched(base: nn.Module, folder: Path) -> nn.Module:
    """The second layer waits on disk."""
    devices = {name: "cpu" for name, module in base.named_modules() if not list(module.children())}
    devices = {name: "cpu" for name in devices if not name.startswith("model.layers")}
    devices |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    return dispatch_model(base, devices, main_device="cpu", offload_dir=str(folder))


AWAY = {"cpu_offload": offloaded, "dispatch_model": dispatched}


@pytest.mark.parametrize("first", ["attach", "move"])
@pytest.mark.parametrize("way", AWAY)
def test_an_offloaded_base_answers_alike(way: str, first: str, tmp_path: Path) -> None:
    """On and off, before or after attaching, offloading changes no bit and no gradient."""
    base, here = llama(), attached(llama(), "touch", "smell")
    if first == "move":
        model = attached(AWAY[way](base, tmp_path), "touch", "smell")
    else:
        model = attached(base, "touch", "smell")
        AWAY[way](base, tmp_path)
    assert any(parameter.is_meta for parameter in base.parameters())
    batch, on = asked(llama())
    assert model.device == CPU
    assert all_same(answers(model, on), answers(here, on))
    assert all_same(answers(model, batch), answers(here, batch))
    expected = gradients(here, here, on)
    assert all_same(gradients(model, model, on), expected)
    model.train().gradient_checkpointing_enable()
    assert all_same(gradients(model, model, on), expected)
    model.gradient_checkpointing_disable()
    assert all_same(answers(model.eval(), on), answers(here, on))


@pytest.mark.parametrize("way", AWAY)
def test_a_fingerprint_reads_offloaded_weights(way: str, tmp_path: Path) -> None:
    """It is that of the weights in place, and another one if an offloaded weight differs."""
    other = llama()
    other.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1e-6
    expected, different = fingerprint(llama()), fingerprint(other)
    assert expected != different
    assert fingerprint(AWAY[way](llama(), tmp_path / "one")) == expected
    assert fingerprint(AWAY[way](other, tmp_path / "two")) == different


def test_an_offloaded_base_has_an_encoder_and_facts() -> None:
    """Samples are encoded, and an adapter that starts from the base's weights can be made."""
    model = attached(cpu_offload(llama(), execution_device=CPU), tokenizer=tokenizer())
    assert model.encode("touch", [torch.ones(2, 4)]).values.device == CPU
    assert model.facts().num_layers == LAYERS
    model.remove_modality("touch")
    assert lora(model, init="random").layers == (0, LAYERS - 1)


# PEFT


peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")


@pytest.fixture
def tuned() -> nn.Module:
    """A base that somebody has fine-tuned with PEFT's LoRA."""
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return tuned


@peft_warns
def test_a_base_tuned_with_peft_is_a_base(tuned: nn.Module) -> None:
    """Off is the tuned base, and its own adapter is neither trained nor saved by ours."""
    untouched, model = copy_of(tuned), attached(tuned, "touch", "smell")
    batch, on = asked(llama())
    with torch.no_grad():
        expected = forward_tensors(untouched, batch)
        assert all_same(forward_tensors(model, batch), expected)
        with model.off():
            assert all_same(forward_tensors(model, on), expected)
        active = model(**on).logits
    assert (active != expected[1]).flatten(1).any(1).all()
    gradients(model, model, on)
    assert all(parameter.grad is None for parameter in tuned.parameters())


@peft_warns
def test_pefts_adapter_can_be_switched_off_inside(tuned: nn.Module) -> None:
    """Within ``disable_adapter`` both answers are those of the base before it was tuned."""
    model, plain = attached(tuned, "touch", "smell"), attached(llama(), "touch", "smell")
    batch, on = asked(llama())
    before = answers(model, on)
    with tuned.disable_adapter():
        assert all_same(answers(model, on), answers(plain, on))
        assert all_same(answers(model, batch), answers(plain, batch))
    assert all_same(answers(model, on), before)
    assert not torch.equal(before[1], answers(plain, on)[1])


# Data parallel, dtypes, attention


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("recomputed", [False, True])
def test_distributed_data_parallel_gives_the_same_gradients(recomputed: bool) -> None:
    """Wrapped for several processes, the loss reaches every parameter as before."""
    model = attached(llama(), "touch", "smell").train()
    _, on = asked(model.base)
    expected = gradients(model, model, on)
    if recomputed:
        model.gradient_checkpointing_enable()
    assert all_same(gradients(model, DistributedDataParallel(model), on), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_take_float32_adapters(dtype: torch.dtype) -> None:
    """Off is the base's bits; on keeps its dtype, and gradients are finite and float32."""
    base = llama().to(dtype)
    untouched, model = copy_of(base), attached(base, "touch", "smell")
    batch, on = asked(base)
    with torch.no_grad():
        expected = forward_tensors(untouched, batch)
        assert all_same(forward_tensors(model, batch), expected)
        active = model(**on).logits
    assert active.dtype == dtype
    assert not bitwise_equal(active, expected[1])
    found = gradients(model, model, on)
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_can_be_changed_while_attached(attention: str) -> None:
    """``set_attn_implementation`` gives what a base loaded with it gives."""
    model, loaded = attached(llama()), attached(llama(attn_implementation=attention))
    model.base.set_attn_implementation("sdpa" if attention == "eager" else "eager")
    model.base.set_attn_implementation(attention)
    batch = texts(model.base, 2, 5)
    for inputs in (batch, batch | felt(2)):
        assert all_same(answers(model, inputs), answers(loaded, inputs))
