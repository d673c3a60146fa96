"""A changed base in an adapter's folder: whole, bound to its original, and never passed over."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safe_framework.config.schema import StageBSpec
from safe_framework.core.build import load_tensors
from safe_framework.errors import AdapterError
from safe_framework.utils.tensors import bitwise_equal
from tests.experimental.base_finetuning.changed import LAYERS, LORA, changed
from tests.laws.calls import copy_of
from tests.support.toys import attached, felt, gpt2, llama, texts

SPECS = {"lora": LORA, "layers": LAYERS}
FILES = {"lora": "base_lora/adapter_model.safetensors", "layers": "base_layers.safetensors"}

DRIFT = {"agreement": 0.5, "kl": 0.1, "largest": 2.0, "positions": 9, "texts": 3, "source": "texts"}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_it_comes_back_bit_for_bit(spec: StageBSpec, tmp_path: Path) -> None:
    """Law: a saved model and a loaded one compute the same bits, and tell the same change."""
    model, other = changed(llama(), spec), attached(llama())
    model.base_change.drift = DRIFT
    load_tensors(other, model.save_pretrained(tmp_path / "adapter", without_recipe=True))
    batch = texts(model.base, 2, 5)
    with torch.no_grad():
        assert bitwise_equal(other(**batch).logits, model(**batch).logits)
        heard = [one(**batch, **felt(2)).logits for one in (other, model)]
    assert bitwise_equal(*heard)
    assert other.base_change.describe() == model.base_change.describe()
    assert other.base_change.drift == DRIFT


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("make", [llama, gpt2])
def test_peft_loads_the_same_base(make: object, tmp_path: Path) -> None:
    """Law: what LoRA's folder holds is PEFT's own: PEFT gives our bits with it."""
    from peft import PeftModel

    model = changed(make())  # type: ignore[operator]  # a function that makes a base
    folder = model.save_pretrained(tmp_path / "adapter", without_recipe=True)
    theirs = PeftModel.from_pretrained(make(), folder / "base_lora")  # type: ignore[operator]  # so
    batch = texts(model.base, 2, 5)
    with torch.no_grad():
        assert bitwise_equal(theirs(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_it_is_bound_to_the_original(spec: StageBSpec, tmp_path: Path) -> None:
    """Law: the recorded fingerprints are the original base's; another base is refused."""
    model, bare = changed(llama(), spec), attached(llama())
    folder = model.save_pretrained(tmp_path / "adapter", without_recipe=True)
    held = json.loads((folder / "adapter_config.json").read_text())["base"]
    assert bare.base_identity() == model.base_identity()
    assert held.items() >= model.base_identity().items()
    with torch.no_grad():
        bare.base.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] += 1
    with pytest.raises(AdapterError, match="was made for another base"):
        load_tensors(bare, folder)


@pytest.mark.parametrize("method", SPECS)
def test_other_weights_are_refused(method: str, tmp_path: Path) -> None:
    """Law: a change whose tensors are not those of its config is refused; the base stays bare."""
    folder = changed(llama(), SPECS[method]).save_pretrained(
        tmp_path / "adapter", without_recipe=True
    )
    place, other = folder / FILES[method], attached(llama())
    save_file({key: tensor + 1 for key, tensor in load_file(place).items()}, place)
    with pytest.raises(AdapterError, match="holds other weights than it was saved with"):
        load_tensors(other, folder)
    batch = texts(other.base, 2, 5)
    assert other.base_change is None
    with torch.no_grad():
        assert bitwise_equal(other(**batch).logits, copy_of(llama())(**batch).logits)


@pytest.mark.parametrize("method", SPECS)
def test_a_missing_file_is_refused(method: str, tmp_path: Path) -> None:
    """Law: an adapter that has lost its change is no adapter of Stage A."""
    folder = changed(llama(), SPECS[method]).save_pretrained(
        tmp_path / "adapter", without_recipe=True
    )
    (folder / FILES[method]).unlink()
    with pytest.raises(AdapterError, match=r"the changed base of .* cannot be read"):
        load_tensors(attached(llama()), folder)


def test_a_card_without_a_measure_says_so(tmp_path: Path) -> None:
    """Law: a card tells a drift that was measured, or that none was."""
    card = (
        changed(llama()).save_pretrained(tmp_path / "adapter", without_recipe=True) / "README.md"
    ).read_text()
    assert "L1 and L2 do not hold" in card
    assert "was not measured: `safe verify` does" in card


def test_a_certificate_outlives_a_measure(tmp_path: Path) -> None:
    """Law: a run saves before and after it has measured the drift; a certificate is of both."""
    model, folder = changed(llama()), tmp_path / "adapter"
    model.base_change.drift = DRIFT
    model.save_pretrained(folder, without_recipe=True)
    (folder / "certificate.json").write_text("{}")
    for drift in ({}, DRIFT):
        model.base_change.drift = drift
        model.save_pretrained(folder, without_recipe=True)
        assert (folder / "certificate.json").is_file()
    assert json.loads((folder / "adapter_config.json").read_text())["base_change"]["drift"] == DRIFT
    with torch.no_grad():
        next(iter(model.trainable_parameters().values())).add_(1.0)
    model.save_pretrained(folder, without_recipe=True)
    assert not (folder / "certificate.json").exists()
