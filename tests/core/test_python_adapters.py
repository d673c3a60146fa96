"""Adapters of models that were put together in Python, without a recipe."""

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import safe_framework
from safe_framework.config.read import parse_recipe
from safe_framework.core.adapter import CONFIG, RECIPE
from safe_framework.core.model import SafeModel
from safe_framework.errors import AdapterError
from safe_framework.interfaces import registry
from safe_framework.utils.tensors import bitwise_equal
from safe_framework_plugins.encoders.multimodal import MultimodalEncoder
from safe_framework_plugins.encoders.sensor import SensorEncoder
from safe_framework_plugins.fusion.lora import LoraFusion
from safe_framework_plugins.projectors.standard import StandardProjector
from tests.support.toys import HIDDEN, ToyFusion, attached, llama, tokenizer

RECORDING = np.random.default_rng(0).normal(size=(8, 2)).astype("f4")

WRITTEN = """\
[base]
model = "memory:LlamaForCausalLM"
dtype = "float32"

[modalities.touch]
encoder = { use = "sensor", channels = 2, rate = 4.0, patch = 4, dim = 6 }
projector = { use = "standard", tokens = 2, hidden_dim = 8 }
fusion = { use = "lora", layers = [0, 1], rank = 2 }
gate = { value = 0.5 }
"""


def by_hand(**options: Any) -> SafeModel:
    """A model whose parts are shipped plugins, with weights that are felt."""
    model = safe_framework.attach(llama(), tokenizer())
    torch.manual_seed(1)
    encoder = SensorEncoder(channels=2, rate=np.float64(4.0), patch=4, dim=6)
    model.add_modality(
        "touch",
        encoder=encoder,
        projector=StandardProjector(encoder.dim, HIDDEN, tokens=2, hidden_dim=8),
        fusion=LoraFusion(model.facts(), layers=[0, 1], rank=2),
        **{"gate": 0.5, **options},
    )
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.normal_(std=0.5)
    return model


def logits(model: SafeModel) -> torch.Tensor:
    """What it predicts beside a recording."""
    with torch.no_grad():
        found: torch.Tensor = model(**model.processor(["w3 w4"], touch=[RECORDING])).logits
    return found


def test_a_model_says_how_it_was_made() -> None:
    """Law: the recipe of a model made in Python names its plugins with the options given."""
    text = by_hand().recipe()
    assert text == WRITTEN
    parse_recipe(text)


@pytest.mark.parametrize("options", [{}, {"markers": True}, {"inline": True, "gate": 1.0}])
def test_it_is_loaded_without_the_code_that_made_it(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Law: saved and loaded on its base, the model gives the same bits, and says the same."""
    model = by_hand(**options)
    folder = model.save_pretrained(tmp_path / "adapter")
    again = safe_framework.load(folder, base=llama(), tokenizer=tokenizer())
    assert bitwise_equal(logits(again), logits(model))
    assert again.recipe() == model.recipe()
    assert again.save_pretrained(tmp_path / "again").joinpath(RECIPE).read_text() == again.recipe()


def test_a_base_without_a_name_is_asked_for(tmp_path: Path) -> None:
    """Law: where the base was only in memory, the error says to give it."""
    folder = by_hand().save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"`LlamaForCausalLM` in memory.*\nhint: .*base=\.\.\."):
        safe_framework.load(folder)


def test_encoders_within_encoders_are_named() -> None:
    """Law: an option that holds encoders is written as the tables that make them."""
    parts = [SensorEncoder(channels=n, rate=4.0) for n in (1, 2)]
    model = attached(llama(), fusion=ToyFusion())
    encoder = MultimodalEncoder(encoders=parts)
    model.add_modality(
        "both",
        encoder=encoder,
        projector=StandardProjector(encoder.dim, HIDDEN),
        fusion=ToyFusion(),
    )
    table = (
        '{ use = "multimodal", encoders = [{ use = "sensor", channels = 1, rate = 4.0 }, '
        '{ use = "sensor", channels = 2, rate = 4.0 }] }'
    )
    assert f"encoder = {table}\n" in model.recipe()


def test_what_has_no_name_is_refused_or_left_out(tmp_path: Path) -> None:
    """Law: a class of no plugin is refused with both fixes; left out, the model is loaded into."""
    torch.manual_seed(0)
    model = attached(llama(), tokenizer=tokenizer())
    hint = "entry points `safe_framework.encoders`.*without_recipe=True"
    with pytest.raises(
        AdapterError, match=f"encoder `ToyEncoder` of modality `touch`.*\nhint: .*{hint}"
    ):
        model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    folder = model.save_pretrained(tmp_path / "adapter", without_recipe=True)
    with pytest.raises(AdapterError, match=r"hint: .*load\(folder, model=model\)"):
        safe_framework.load(folder)
    with torch.no_grad():
        other = attached(llama(), tokenizer=tokenizer())
        other.modality("touch").fusion.scale.zero_()
    safe_framework.load(folder, model=other)
    for name, tensor in model.adapter_tensors().items():
        assert bitwise_equal(other.adapter_tensors()[name], tensor)
    with pytest.raises(AdapterError, match="holds modality `touch`, which the model does not have"):
        safe_framework.load(folder, model=safe_framework.attach(llama()))


def test_an_option_that_no_recipe_holds_is_refused(tmp_path: Path) -> None:
    """Law: an object among a plugin's options is named."""
    model = by_hand()
    model.modality("touch").fusion.__dict__["_given_options"]["rank"] = object()
    with pytest.raises(
        AdapterError, match="option `rank` of fusion `LoraFusion` of modality `touch`"
    ):
        model.save_pretrained(tmp_path / "adapter")


def test_a_missing_plugin_is_named_with_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: where a plugin is not installed, loading says which distribution has it."""
    folder = by_hand().save_pretrained(tmp_path / "adapter")
    real = registry.group_points

    def without_sensor(group: str) -> list[EntryPoint]:
        """What is installed, but for one plugin."""
        return [point for point in real(group) if point.name != "sensor"]

    monkeypatch.setattr(registry, "group_points", without_sensor)
    assert '"sensor"' in (folder / CONFIG).read_text("utf-8")
    with pytest.raises(
        AdapterError, match=r"`sensor` for modality `touch`\nhint: pip install safe"
    ):
        safe_framework.load(folder, base=llama(), tokenizer=tokenizer())


def test_a_part_that_was_changed_by_hand_is_in_the_recipe(tmp_path: Path) -> None:
    """Law: a recipe that is no longer true is not saved."""
    model = by_hand()
    first = safe_framework.load(
        model.save_pretrained(tmp_path / "adapter"), base=llama(), tokenizer=tokenizer()
    )
    encoder = first.modality("touch").encoder
    first.remove_modality("touch")
    first.add_modality(
        "touch", encoder=encoder, projector=StandardProjector(encoder.dim, HIDDEN, tokens=3),
        fusion=LoraFusion(first.facts(), rank=1),
    )  # fmt: skip
    text = first.recipe()
    assert 'projector = { use = "standard", tokens = 3 }' in text
    assert 'fusion = { use = "lora", rank = 1 }' in text
