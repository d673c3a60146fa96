"""Quantised checkpoints are told apart by their config, before anything fails."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import safe_framework
from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.read import parse_recipe
from safe_framework.config.schema import BaseSpec, Recipe
from safe_framework.errors import CheckpointError, SafeError
from safe_framework.pretrained import quantised
from safe_framework.pretrained.base_model import load_base
from safe_framework.pretrained.quantised import quantisation_of
from safe_framework.runs.base_check import check_base
from safe_framework.utils.hashing import content_fingerprints, fingerprint
from tests.support.toys import llama, tokenizer

# As their libraries write them into a checkpoint's config.json.
BITSANDBYTES = {"quant_method": "bitsandbytes", "_load_in_4bit": True, "load_in_4bit": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
CONFIGS = {
    "bitsandbytes, 4 bits": (BITSANDBYTES, "bitsandbytes"),
    "bitsandbytes, 8 bits": ({"load_in_8bit": True}, "bitsandbytes"),  # of an older version
    "gptq, 4 bits": (GPTQ, "gptqmodel"),
    "awq, 4 bits": (AWQ, "gptqmodel"),
    "torchao": (TORCHAO, "torchao"),
    "hqq": ({"quant_method": "hqq", "quant_config": {}}, "hqq"),
    "compressed-tensors": ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    "new-one": ({"quant_method": "new-one"}, ""),
}


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no library for quantised weights is installed."""
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A base in a folder."""
    llama().save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def recipe_of(checkpoint: Path) -> Recipe:
    """A recipe for a base."""
    return parse_recipe(
        f'[base]\nmodel = "{checkpoint}"\n[modalities.audio]\n'
        'encoder = { use = "whisper", model = "whisper" }\nprojector = { use = "standard" }\n'
        'fusion = { use = "lora", layers = [0] }\n'
    )


def quantise(folder: Path, held: dict[str, Any]) -> None:
    """Write into a checkpoint's config that it is quantised."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "quantization_config": held}), "utf-8")


@pytest.mark.parametrize("called", CONFIGS)
@pytest.mark.parametrize("within", [None, "text_config"])
def test_a_config_says_how_it_is_quantised(called: str, within: str | None) -> None:
    """Law: method and bits are those of the config, or of the language model's part of it."""
    config: dict[str, Any] = {"quantization_config": CONFIGS[called][0]}
    found = quantisation_of({within: config} if within else config)
    assert found is not None
    assert str(found) == called
    assert found.missing == CONFIGS[called][1]


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, None, {"text_config": {}}])
def test_other_configs_are_not_quantised(config: Any) -> None:
    """Law: without a quantisation config, nothing is quantised; nor is what came out of GGUF."""
    assert quantisation_of(config) is None
    assert quantisation_of({"quantization_config": {"quant_method": "gguf"}}) is None
    assert quantisation_of(llama().config) is None


@pytest.mark.parametrize("called", [one for one in CONFIGS if one != "new-one"])
def test_a_checkpoint_without_its_library_is_refused(checkpoint: Path, called: str) -> None:
    """Golden text: the method, what is not installed, and what to do; no error of a loader."""
    held, distribution = CONFIGS[called]
    quantise(checkpoint, held)
    with pytest.raises(CheckpointError) as caught:
        load_base(BaseSpec(model=str(checkpoint)))
    assert str(caught.value) == (
        f"`{checkpoint}` is quantised ({called}), for which `{distribution}` is not installed\n"
        f"hint: pip install {distribution}; or name the checkpoint that it was quantised from"
    )
    with pytest.raises(RecipeError, match="is not installed"):
        check_base(recipe_of(checkpoint))


def test_what_its_loader_refuses_says_that_it_is_quantised(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: with the library there, an error of it says what it is about, and is the cause."""
    quantise(checkpoint, GPTQ)
    monkeypatch.setattr(quantised, "find_spec", lambda name: "there")
    with pytest.raises(CheckpointError, match=r"is quantised \(gptq, 4 bits\), and cannot"):
        load_base(BaseSpec(model=str(checkpoint)))
    (note,) = check_base(recipe_of(checkpoint))
    assert "as no base is that this framework was tested with" in note


def test_a_quantised_base_in_memory_is_told_of_and_not_cast() -> None:
    """Law: attaching to one warns that it is untested, and a cast is refused before it is done."""
    base = llama()
    base.config.quantization_config = GPTQ
    with pytest.warns(UserWarning, match=r"the base is quantised \(gptq, 4 bits\)"):
        model = safe_framework.attach(base)
    with pytest.raises(SafeError, match=r"a quantised base \(gptq, 4 bits\) cannot be cast"):
        model.to(torch.bfloat16)
    assert {p.dtype for p in base.parameters()} == {torch.float32}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.to("cpu") is model


def test_weights_of_several_tensors_are_hashed() -> None:
    """Law: a weight that wraps others, as torchao's, counts by all of them."""

    def wrapping(second: float) -> nn.Module:
        """A module with such a weight."""
        made = nn.Module()
        weight = TwoTensor(torch.ones(4), torch.full((4,), float(second)))
        made.weight = nn.Parameter(weight, requires_grad=False)
        return made

    one, same, other = wrapping(2), wrapping(2), wrapping(3)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    types = [torch.bfloat16]
    assert content_fingerprints(one, types) == content_fingerprints(same, types)
    assert content_fingerprints(one, types) != content_fingerprints(other, types)
