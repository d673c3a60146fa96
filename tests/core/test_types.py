"""Models that are cast, built under another default type, or built in inference mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import safe_framework
from safe_framework.core.build import load_tensors
from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError
from safe_framework.utils.tensors import bitwise_equal
from safe_framework.verification.laws import base_differences
from tests.laws.calls import all_same, copy_of, forward_tensors, generate_tensors
from tests.support.marked import batch_of, marking
from tests.support.toys import attached, bart, felt, gpt2, llama, texts, tokenizer

Write = Callable[..., Path]

CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to": lambda model: model.to(torch.bfloat16),
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
}
BASES = {"llama": llama, "gpt2": gpt2, "bart": bart}


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Within the block, torch's default type is ``dtype``."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_model_hears_and_its_off_is_the_cast_base(name: str, cast: str) -> None:
    """Law: cast as a whole, a model hears with finite logits, and off it is its base cast alone."""
    model, alone = attached(BASES[name]()), copy_of(BASES[name]())
    CASTS[cast](model), CASTS[cast](alone)
    plain = texts(model.base, 2, 4)
    with torch.no_grad():
        heard = model(**plain, **felt(2)).logits
        off = model(**plain).logits
        expected = alone(**plain).logits
    assert heard.dtype == expected.dtype
    assert bool(heard.isfinite().all())
    assert not torch.equal(heard, off)
    assert bitwise_equal(off, expected)


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_model_with_markers_generates(cast: str, inline: bool) -> None:
    """Law: markers and tokens in the text are cast with the model."""
    model = marking(llama(), inline=inline)
    CASTS[cast](model)
    made = generate_tensors(model.generate, batch_of(model), {"do_sample": False})
    assert made


def test_a_frozen_encoder_keeps_its_type(tmp_path: Path) -> None:
    """Law: a cast leaves the frozen encoder's bits; one that trains is cast and still hears."""
    model = attached(llama())
    before = [p.clone() for p in model.modality("touch").encoder.parameters()]
    model.to(torch.bfloat16)
    after = list(model.modality("touch").encoder.parameters())
    assert all(bitwise_equal(a, b) for a, b in zip(before, after, strict=True))
    trained = attached(llama())
    trained.modality("touch").encoder.requires_grad_(True)
    trained.to(torch.bfloat16).train()
    plain = texts(trained.base, 2, 4)
    trained(**plain, **felt(2), labels=plain["input_ids"]).loss.backward()
    weight = trained.modality("touch").encoder.mix.weight  # type: ignore[union-attr]  # a Linear
    assert weight.grad.dtype == torch.bfloat16  # type: ignore[union-attr]  # a parameter


def test_a_cast_is_no_change_behind_the_models_back() -> None:
    """Law L1: a cast by the owner is taken over; a weight that was written before it is found."""
    model = attached(llama(), tokenizer=tokenizer())
    model.to(torch.bfloat16)
    assert base_differences(model.base_snapshot, model.base, model.tokenizer) == []
    other = attached(llama())
    other.base.model.norm.weight.data[0] += 1  # type: ignore[union-attr, operator]  # a Llama
    other.to(torch.bfloat16)
    (found,) = base_differences(other.base_snapshot, other.base)
    assert found == "weight `model.norm.weight` was float32 and is bfloat16"


def test_a_cast_adapter_is_loaded_on_the_base_as_it_was(tmp_path: Path) -> None:
    """Law: what a cast model saves loads on the same base in its own type, with a note."""
    model = attached(llama(), tokenizer=tokenizer())
    folder = model.to(torch.bfloat16).save_pretrained(tmp_path / "adapter", without_recipe=True)
    fresh = attached(llama(), tokenizer=tokenizer())
    with pytest.warns(UserWarning, match="its weights are float32 and were bfloat16"):
        load_tensors(fresh, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tensors(attached(llama(), tokenizer=tokenizer()).to(torch.bfloat16), folder)
    assert fresh.to(torch.float16).base_snapshot.accepted == (
        "its weights are float32 and were bfloat16",
        "its weights are float16 and were float32",
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_recipe_is_built_alike_under_any_default_type(recipe: Write, dtype: torch.dtype) -> None:
    """Law: parts and prepared samples are float32 whatever the default; outputs are the same."""
    import numpy as np

    asked: dict[str, Any] = {"audio": [np.sin(np.arange(8000) / 9)], "sampling_rate": 16_000}

    def answer() -> list[torch.Tensor]:
        """Logits with a sound, from a model built here."""
        model = safe_framework.build(recipe())
        torch.manual_seed(0)
        for parameter in model.trainable_parameters().values():
            torch.nn.init.normal_(parameter.data, std=0.5)
        return forward_tensors(model, model.processor(text=["w3 w4"], **asked))

    expected = answer()
    with default_type(dtype):
        found = answer()
    assert all_same(found, expected)


def test_a_model_built_in_inference_mode_trains(recipe: Write) -> None:
    """Law: what `build` and `attach` make inside `inference_mode` can be trained outside of it."""
    with torch.inference_mode():
        model = safe_framework.build(recipe())
        model(**texts(model.base, 1, 3))
    assert not any(p.is_inference() for p in model.parameters())
    base = llama()
    with torch.inference_mode():
        wrapped = safe_framework.attach(base)
    assert not any(p.is_inference() for p in wrapped.parameters())


@pytest.mark.parametrize("part", ["base", "plugin"])
def test_what_was_made_in_inference_mode_is_named(part: str) -> None:
    """Golden text: a base or plugin of one's own from inside `inference_mode` cannot be trained."""
    model: SafeModel
    if part == "base":
        with torch.inference_mode():
            base = llama()
        model = attached(base)
    else:
        with torch.inference_mode():
            model = attached(llama())
    with pytest.raises(SafeError, match=r"parameters, such as `.*`, were made in `inference_mode`"):
        model.train()
    assert not model.training
    assert model.eval() is model
