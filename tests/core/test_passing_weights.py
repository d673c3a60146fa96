"""A base whose weights pass on their way to another program: told from others, and not read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import safe_framework
from safe_framework.config.schema import BaseSpec
from safe_framework.core.base_identity import compare_bases, recorded_weights
from safe_framework.core.build import WeightlessAdapter
from safe_framework.core.passing_weights import PassingWeights
from safe_framework.errors import AdapterError
from safe_framework.pretrained import quietly
from safe_framework.pretrained.base_model import is_weightless, load_base
from safe_framework.utils.hashing import fingerprint
from tests.core.conftest import RECIPE
from tests.support import seeing
from tests.support.toys import BASES, llama, mixtral, tokenizer

READING: dict[str, Callable[[], nn.Module]] = {
    **{name: make for name, make in BASES.items() if name != "llava"},
    "tied": lambda: llama(tie_word_embeddings=True),
    "mixtral": mixtral,
}
PLAIN = [name for name in READING if name != "mixtral"]
SEEING = ("llava", "llava-next", "qwen2-vl", "smolvlm", "gemma3")


def saved(name: str, folder: Path) -> Path:
    """A tiny base on disk."""
    with quietly():
        if name in SEEING:
            return seeing.save(folder, *seeing.seeing_bases()[name]())
        READING[name]().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def passed(folder: Path, recorded: Any, dtype: Any = "auto") -> tuple[nn.Module, PassingWeights]:
    """A base without its weights, and what has seen them pass."""
    base, _ = load_base(BaseSpec(model=str(folder), dtype=dtype), weights=False)
    passing = PassingWeights(base, recorded, "", ())
    stored = load_file(folder / "model.safetensors")
    seen = dict(passing.watched(stored.items()))
    assert all(seen[name] is stored[name] for name in stored)
    assert all(tensor.is_meta for tensor in base.state_dict().values())
    return base, passing


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("name", [*PLAIN, *SEEING])
def test_weights_that_pass_have_the_fingerprint_of_those_that_are_loaded(
    name: str, dtype: Any, tmp_path: Path
) -> None:
    """Law: whatever names, types and ties a checkpoint has, its fingerprint is that of its base."""
    folder = saved(name, tmp_path)
    base, _ = load_base(BaseSpec(model=str(folder), dtype=dtype))
    _, passing = passed(folder, {}, dtype)
    assert passing.complete
    assert passing.fingerprint == fingerprint(base)


@pytest.mark.parametrize("name", ["tied", "gpt2", "llava-next"])
@pytest.mark.parametrize("changed", [False, True])
def test_numbers_that_pass_in_another_type_are_recognised(
    name: str, changed: bool, tmp_path: Path
) -> None:
    """Law: rounded weights are the adapter's own, and rounded others are others."""
    folder = saved(name, tmp_path)
    whole, processor = load_base(BaseSpec(model=str(folder)))
    recorded = {"weights": fingerprint(whole), **recorded_weights(whole, fingerprint(whole))}
    if changed:
        change(folder)
    base, passing = passed(folder, recorded, "bfloat16")
    now = {"weights": passing.fingerprint}
    found = compare_bases(recorded, base, processor, now, passing.contents)
    assert bool(found.harmful) is changed
    assert found.harmless == (() if changed else ("its weights are bfloat16 and were float32",))


def change(folder: Path) -> None:
    """Another number in a checkpoint, in the middle of its largest weight."""
    weights = load_file(folder / "model.safetensors")
    largest = max(weights.values(), key=torch.numel)
    largest.flatten()[largest.numel() // 2] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_experts_that_transformers_joins_are_left_to_it(tmp_path: Path) -> None:
    """Law: of weights of which several become one in transformers, nothing is claimed."""
    _, passing = passed(saved("mixtral", tmp_path), {})
    assert not passing.complete


@pytest.fixture
def adapter(tmp_path: Path, checkpoints: Path) -> Path:
    """An adapter that is made of its base's attention; its own base lies beside it."""
    saved("tied", tmp_path / "base")
    text = RECIPE.format(folder=checkpoints, rank=2, seed=0)
    text = text.replace(f"{checkpoints}/base", str(tmp_path / "base"))
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    model = safe_framework.build(tmp_path / "recipe.toml")
    for parameter in model.trainable_parameters().values():
        parameter.data.normal_()
    return model.save_pretrained(tmp_path / "adapter")


def loaded_while_passing(folder: Path) -> Any:
    """An adapter whose base's weights have passed."""
    weightless = WeightlessAdapter.of(folder)
    passing = weightless.passing()
    dict(passing.watched(load_file(folder.parent / "base" / "model.safetensors").items()))
    assert passing.complete
    return weightless.load(passing)


def test_an_adapter_is_loaded_while_its_base_passes(adapter: Path) -> None:
    """Law: its tensors are those of ``load``, what is made of the base's attention included."""
    expected = safe_framework.load(adapter).modalities.state_dict()
    found = loaded_while_passing(adapter).modalities.state_dict()
    assert expected.keys() == found.keys()
    assert any("base_layer" in name for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_adapter_is_refused_when_another_base_passes(adapter: Path) -> None:
    """Law: other weights are refused, in the words in which ``load`` refuses them."""
    change(adapter.parent / "base")
    with pytest.raises(AdapterError) as expected:
        safe_framework.load(adapter)
    with pytest.raises(AdapterError, match=r"another base .*: weights differ") as found:
        loaded_while_passing(adapter)
    assert (found.value.message, found.value.hint) == (expected.value.message, expected.value.hint)


def test_samples_are_prepared_without_the_base_s_weights(adapter: Path) -> None:
    """Law: a model without its base's weights prepares samples as ``load``'s, and reads none."""
    weightless, whole = WeightlessAdapter.of(adapter).load(), safe_framework.load(adapter)
    assert is_weightless(weightless.base)
    assert all(tensor.is_meta for tensor in weightless.base.state_dict().values())
    sound = torch.rand(16_000, generator=torch.Generator().manual_seed(0)).numpy()
    one, other = (
        model.processor(text=["w3 w4"], audio=[sound], sampling_rate=16_000)
        for model in (weightless, whole)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert weightless.stack == whole.stack
