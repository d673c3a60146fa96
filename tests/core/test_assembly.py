"""From a recipe to a model, to a folder, and back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import safe_framework
from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.plugins import regularizers
from safe_framework.config.read import read_recipe
from safe_framework.core.adapter import RECIPE
from safe_framework.core.base_model import installed_hooks
from safe_framework.data.audio import Waveform
from safe_framework.errors import AdapterError, SampleError
from safe_framework.utils.hashing import fingerprint, tensors_fingerprint
from tests.laws.calls import all_same, forward_tensors, generate_tensors
from tests.support.toys import llama, tokenizer

Write = Callable[..., Path]


def sound(seconds: float = 0.3, rate: int = 16000) -> Waveform:
    """A tone."""
    times = np.arange(int(seconds * rate)) / rate
    return Waveform(np.sin(880 * times).astype(np.float32), rate)


def trained(path: Path) -> Any:
    """The recipe's model, its trainable parts drawn anew."""
    model = safe_framework.build(path)
    torch.manual_seed(3)
    for parameter in model.trainable_parameters().values():
        torch.nn.init.normal_(parameter)
    return model


def test_build_makes_what_the_recipe_says(recipe: Write) -> None:
    """Base, modality, gate, layers and rank are the recipe's."""
    model = safe_framework.build(recipe(rank=3))
    assert fingerprint(model.base) == fingerprint(llama())
    assert model.gates == {"audio": 0.5}
    assert model.modality("audio").fusion.layers == (1,)
    ranks = {p.shape[0] for n, p in model.trainable_parameters().items() if "lora_A" in n}
    assert ranks == {3}
    assert model.tokenizer.get_vocab() == tokenizer().get_vocab()


def test_a_fresh_build_is_silent_and_a_trained_one_is_not(recipe: Write) -> None:
    """The recipe's model starts as the base and can leave it."""
    fresh, other = safe_framework.build(recipe()), trained(recipe())
    batch = fresh.processor(["w3 w4", "w5 w6"], audio=[sound(), None])
    plain = {key: value for key, value in batch.items() if "__" not in key}
    with torch.no_grad():
        expected = fresh.base(**plain).logits
        assert all_same([fresh(**batch).logits], [expected])
        active = other(**batch).logits
    assert not torch.equal(active[0], expected[0])
    assert all_same([active[1]], [expected[1]])


def test_build_moves_no_generator(recipe: Write) -> None:
    """The caller's random numbers are the same with and without a build between."""
    path = recipe()
    safe_framework.build(path)
    torch.manual_seed(99)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].tolist()
    safe_framework.build(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numbers


def test_the_seed_decides_the_fresh_weights(recipe: Write) -> None:
    """Two builds of one recipe are equal, whatever the caller drew; of another seed not."""
    first = safe_framework.build(recipe(seed=1))
    torch.manual_seed(99)
    second = safe_framework.build(recipe(seed=1))
    third = safe_framework.build(recipe(seed=2))
    names = [tensors_fingerprint(model.adapter_tensors()) for model in (first, second, third)]
    assert names[0] == names[1] != names[2]


def test_attach_takes_a_base_in_memory(recipe: Write) -> None:
    """``attach`` gives the recipe's modalities to the very base that it was given."""
    base, words = llama(), tokenizer()
    model = safe_framework.attach(base, words, recipe=recipe())
    assert model.base is base
    assert model.tokenizer is words
    assert list(model.modalities) == ["audio"]
    assert len(installed_hooks(model.detach())) == 0


def test_attach_without_a_recipe_adds_nothing() -> None:
    """An unwrapped model has no modality and no hook."""
    model = safe_framework.attach(llama(), tokenizer())
    assert not model.modalities
    assert installed_hooks(model.base) == []


def test_load_gives_back_the_model(recipe: Write, tmp_path: Path) -> None:
    """Base, adapter and gate come back from the folder alone; calls give the same bits."""
    model = trained(recipe())
    model.set_gate(0.75)
    again = safe_framework.load(model.save_pretrained(tmp_path / "adapter"))
    batch = dict(model.processor(["w3 w4", "w5 w6"], audio=[sound(), sound(0.9)]))
    assert all_same(forward_tensors(again, batch), forward_tensors(model, batch))
    expected = generate_tensors(model.generate, batch, {"num_beams": 2})
    assert all_same(generate_tensors(again.generate, batch, {"num_beams": 2}), expected)
    assert again.gates == {"audio": 0.75}
    assert (tmp_path / "adapter" / RECIPE).read_text() == recipe().read_text()


def apart(recipe: Write, tmp_path: Path) -> tuple[Path, Path]:
    """Two adapters for one base, each trained without the other: ``audio`` and ``speech``."""
    path = recipe()
    first = trained(path).save_pretrained(tmp_path / "first")
    path.write_text(path.read_text().replace("modalities.audio", "modalities.speech"))
    return first, trained(path).save_pretrained(tmp_path / "second")


def test_adapters_trained_apart_load_together(recipe: Write, tmp_path: Path) -> None:
    """L6: with one of the two off, the model is bit for bit the one that has only the other."""
    first, second = apart(recipe, tmp_path)
    both = safe_framework.load(first, second)
    assert list(both.modalities) == ["audio", "speech"]
    for folder, name, other in [(first, "audio", "speech"), (second, "speech", "audio")]:
        alone = safe_framework.load(folder)
        batch = dict(alone.processor(["w3 w4", "w5 w6"], **{name: [sound(), sound(0.9)]}))
        quiet = dict(both.processor.modality(other, [sound(), sound()]))
        with both.off(other):
            assert all_same(forward_tensors(both, batch | quiet), forward_tensors(alone, batch))
        active = forward_tensors(both, batch | quiet)
        assert not all_same(active, forward_tensors(alone, batch))


def test_two_adapters_of_one_name_are_refused(recipe: Write, tmp_path: Path) -> None:
    """The second is named, and a base in memory goes back without a hook."""
    first, _ = apart(recipe, tmp_path)
    base = llama()
    with pytest.raises(AdapterError, match="holds modality `audio`, which another adapter"):
        safe_framework.load(first, first, base=base, tokenizer=tokenizer())
    assert installed_hooks(base) == []


def test_adapters_that_were_loaded_together_are_saved_as_one(recipe: Write, tmp_path: Path) -> None:
    """A folder says how to build all that it holds, of whichever recipes that was built."""
    both = safe_framework.load(*apart(recipe, tmp_path))
    again = safe_framework.load(both.save_pretrained(tmp_path / "both"))
    assert list(again.modalities) == ["audio", "speech"]
    batch = dict(both.processor(["w3 w4"], audio=[sound()], speech=[sound(0.9)]))
    assert all_same(forward_tensors(again, batch), forward_tensors(both, batch))


def test_load_takes_a_base_in_memory(recipe: Write, tmp_path: Path) -> None:
    """The base that it was trained on may be given."""
    folder = trained(recipe()).save_pretrained(tmp_path / "adapter")
    base = llama()
    assert safe_framework.load(folder, base=base, tokenizer=tokenizer()).base is base


def test_load_refuses_another_base(recipe: Write, tmp_path: Path) -> None:
    """Another base is refused with what differs, and is left without a hook."""
    folder = trained(recipe()).save_pretrained(tmp_path / "adapter")
    base = llama()
    base.lm_head.weight.data[0, 0] += 1
    with pytest.raises(AdapterError, match=r"made for another base .*: weights differ"):
        safe_framework.load(folder, base=base, tokenizer=tokenizer())
    assert installed_hooks(base) == []


def test_load_refuses_a_model_made_by_hand(recipe: Write, tmp_path: Path) -> None:
    """Without a recipe the folder says how else to load it."""
    folder = trained(recipe()).save_pretrained(tmp_path / "adapter")
    (folder / RECIPE).unlink()
    with pytest.raises(AdapterError, match=r"no `recipe.toml`.*\nhint: .*model=model"):
        safe_framework.load(folder)


def test_load_refuses_what_is_no_adapter(tmp_path: Path) -> None:
    """An empty folder is named before anything is loaded."""
    with pytest.raises(AdapterError, match=r"is not an adapter: it has no `adapter_config\.json`"):
        safe_framework.load(tmp_path)


def test_a_constructors_complaint_is_shown_where_it_was_written(recipe: Write) -> None:
    """``rank = 0`` points at line, column and value of the recipe."""
    path = recipe(rank=0)
    line = path.read_text().split("\n")[6]
    with pytest.raises(RecipeError) as caught:
        safe_framework.build(path)
    text = str(caught.value)
    assert f"{path}:7:{line.index('0,') + 1}: " in text
    assert "`rank` of `lora` must be at least 1, not 0" in text
    assert line in text


def test_the_recipes_retention_is_made(recipe: Write) -> None:
    """Each table becomes a regularizer with its weight and options."""
    (weight, regularizer), = regularizers(read_recipe(recipe()))  # fmt: skip
    assert weight == 2.0
    assert regularizer.temperature == 3.0


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (sound(rate=8000), "sampled at 8000 Hz"),
        (sound(3.0), "longer than the window"),
        (Waveform(np.full(160, np.nan, np.float32), 16000), "NaN or Inf"),
        (np.zeros(160, np.float32), "is a plain array"),
    ],
)
def test_a_sample_that_whisper_cannot_take_is_named(
    recipe: Write, sample: Any, message: str
) -> None:
    """Rate, length, NaN and a missing rate are errors through the whole model, too."""
    model = safe_framework.build(recipe())
    with pytest.raises(SampleError, match=message):
        model.processor("w3", audio=sample)


@pytest.mark.parametrize("statement", ["import safe_framework", "dir(safe_framework)"])
def test_import_loads_no_heavy_library(statement: str) -> None:
    """``import safe_framework`` loads neither torch nor transformers nor peft."""
    code = (
        f"import sys, safe_framework; {statement}; "
        "print(sorted({'torch', 'transformers', 'peft', 'soundfile'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The facade invents no names."""
    with pytest.raises(AttributeError, match="nonsense"):
        _ = safe_framework.nonsense
