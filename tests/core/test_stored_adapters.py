"""Adapters that lie here as an earlier version wrote them: what people have must always load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import safe_framework
from safe_framework.core.adapter import CONFIG, WEIGHTS
from safe_framework.core.build import load_tensors
from safe_framework.core.model import SafeModel
from safe_framework.utils.tensors import bitwise_equal
from tests.core import stored
from tests.laws.calls import all_same, copy_of, forward_tensors, generate_tensors
from tests.support.tolerance import FORWARD, assert_same_sums
from tests.support.toys import texts, tokenizer

NAMES = sorted(stored.MODELS)


def loaded(name: str) -> SafeModel:
    """The stored adapter on its base: by its recipe, or on a model put together by hand."""
    folder = stored.FIXTURES / name
    if name == "toy":
        model = stored.toy()
        load_tensors(model, folder)
        return model
    return safe_framework.load(folder, base=stored.base(), tokenizer=tokenizer())


def test_there_is_one_of_each_kind() -> None:
    """A fixture is there for every model, of the format that is written now or an older one."""
    assert {path.name for path in stored.FIXTURES.iterdir() if path.is_dir()} == set(NAMES)
    configs = [json.loads((stored.FIXTURES / name / CONFIG).read_text("utf-8")) for name in NAMES]
    assert [(config["format"], config["framework"]) for config in configs] == [(1, "0.1.0")] * 2


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_adapter_has_its_bits(name: str) -> None:
    """Law: loaded, each tensor is that of the file bit for bit, and gates are the file's.

    What no adapter held then, the vectors of second samples, is zero.
    """
    model = loaded(name)
    file = load_file(stored.FIXTURES / name / WEIGHTS)
    found = model.adapter_tensors()
    untaught = found.pop("touch.segments.weight")
    assert not untaught.any()
    assert found.keys() == file.keys()
    assert all(bitwise_equal(found[key], file[key]) for key in file)
    assert model.gates == {"touch": {"toy": 0.5, "sensor": 0.75}[name]}


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_adapter_answers_as_it_did(name: str) -> None:
    """Law: to the inputs of then it gives the logits of then, and they are not the base's."""
    held = load_file(stored.FIXTURES / f"{name}.safetensors")
    expected = held.pop("logits")
    model = loaded(name)
    now = stored.batch(model, name)
    assert now.keys() == held.keys()
    for key, value in held.items():  # what an encoder prepares is computed, so to its rounding
        torch.testing.assert_close(now[key], value, rtol=1e-5, atol=1e-6)
    found = stored.answer(model, held)
    # Attention's scores and the base's angles are computed in float32, whatever the rest is.
    assert_same_sums(found, expected, FORWARD, dtype=torch.float32)
    with model.off():
        base = stored.answer(model, held)
    assert (found[:, -1] - base[:, -1]).abs().max() > 1e-3  # without markers there are fewer


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_adapter_that_is_off_is_the_base(name: str) -> None:
    """Law L2: with its sample absent or within ``off()``, it is the base bit for bit."""
    base, model = copy_of(stored.base()), loaded(name)
    plain = texts(base, 2, 5)
    assert all_same(forward_tensors(model, plain), forward_tensors(base, plain))
    inputs = load_file(stored.FIXTURES / f"{name}.safetensors")
    del inputs["logits"]
    words = dict(tokenizer()(stored.TEXTS, return_tensors="pt", return_token_type_ids=False))
    with model.off():
        found = model(**inputs, output_hidden_states=True)
    expected = base(**words, output_hidden_states=True)
    assert all_same(
        [found.logits, *found.hidden_states], [expected.logits, *expected.hidden_states]
    )
    greedy = {"do_sample": False}
    assert all_same(
        generate_tensors(model.generate, plain, greedy),
        generate_tensors(base.generate, plain, greedy),  # type: ignore[operator]  # nn.Module
    )


@pytest.mark.parametrize("name", NAMES)
def test_saved_again_it_is_the_same_file(name: str, tmp_path: Path) -> None:
    """Law: loaded and saved, tensors and recipe are the bytes that were stored.

    The config says all that it said, and may say more of base and encoder.
    """
    stored_folder = stored.FIXTURES / name
    unnamed = not (stored_folder / "recipe.toml").is_file()  # its parts are toys of the tests
    folder = loaded(name).save_pretrained(tmp_path / name, without_recipe=unnamed)
    assert {p.name for p in folder.iterdir()} == {p.name for p in stored_folder.iterdir()}
    for path in folder.iterdir():
        if path.name not in ("README.md", CONFIG):  # a text for people may be worded anew
            assert path.read_bytes() == (stored_folder / path.name).read_bytes(), path.name
    then, now = (json.loads((place / CONFIG).read_text()) for place in (stored_folder, folder))
    assert {**now, "base": now["base"] | then["base"]} == {**now, "base": now["base"]}
    held = now["modalities"]["touch"]
    assert held | then["modalities"]["touch"] == held
    rest = {"base", "modalities"}
    assert {k: v for k, v in now.items() if k not in rest} == {
        k: v for k, v in then.items() if k not in rest
    }
