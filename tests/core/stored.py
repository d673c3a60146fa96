"""The models behind the adapters in ``fixtures/``, whose numbers come of no generator.

``python -m tests.core.stored`` writes a folder for each where there is none. One that is there is
never written anew: it stands for the adapters that people have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import safe_framework
from safe_framework.config.read import parse_recipe
from safe_framework.core.model import SafeModel
from tests.support.toys import DIM, HIDDEN, ToyEncoder, ToyProjector, llama, lora, tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
TEXTS = ["w5 w6 w7", "w8 w9 w10"]
RECIPE = """\
[base]
model = "base"

[modalities.touch]
encoder = { use = "sensor", channels = 2, rate = 50.0, patch = 4, dim = 6 }
projector = { use = "standard", tokens = 2, hidden_dim = 6 }
fusion = { use = "gated", layers = [0, -1] }
gate = { value = 0.75 }
markers = true
inline = true
"""


def fill(tensors: dict[str, Any]) -> None:
    """Give every tensor multiples of 1/2048 below 1/4, which every machine computes exactly."""
    with torch.no_grad():
        for number, name in enumerate(sorted(tensors)):
            count = torch.arange(tensors[name].numel())
            values = ((count * 389 + number * 97) % 1021 - 510).double() / 2048
            tensors[name].copy_(values.reshape(tensors[name].shape))


def base() -> nn.Module:
    """A Llama of such numbers."""
    found = llama()
    fill(dict(found.named_parameters()))
    return found


def toy() -> SafeModel:
    """A toy modality with a shipped adapter, put together by hand."""
    model = SafeModel(base(), tokenizer())
    encoder = ToyEncoder()
    fill(dict(encoder.named_parameters()))
    projector = ToyProjector(DIM, HIDDEN)
    model.add_modality("touch", encoder=encoder, projector=projector, fusion=lora(model), gate=0.5)
    return model


def sensor() -> SafeModel:
    """A shipped encoder that trains, with a shipped projector and adapter, from a recipe."""
    return safe_framework.attach(base(), tokenizer(), recipe=parse_recipe(RECIPE, "recipe.toml"))


MODELS = {"toy": toy, "sensor": sensor}


def batch(model: SafeModel, name: str) -> dict[str, Tensor]:
    """Two rows of text, each with a sample."""
    steps = np.arange(24).reshape(12, 2) % 7 / 8
    samples = [steps[:8], steps]
    if name == "toy":
        samples = [np.tile(sample, 2) for sample in samples]
    inputs = [torch.from_numpy(one).float() if name == "toy" else one for one in samples]
    return dict(model.processor(TEXTS, touch=inputs))


def answer(model: SafeModel, inputs: dict[str, Tensor]) -> Tensor:
    """The model's outputs, computed in float64, so that rounding is far below what is compared."""
    model.double()
    doubled = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.no_grad():
        logits: Tensor = model.eval()(**doubled).logits
    return logits


def write(name: str) -> None:
    """Save the model's adapter, and what it answers."""
    model = MODELS[name]()
    fill(model.adapter_tensors())
    model.save_pretrained(FIXTURES / name, without_recipe=model.built_from is None)
    inputs = batch(model, name)
    save_file(inputs | {"logits": answer(model, inputs)}, FIXTURES / f"{name}.safetensors")


if __name__ == "__main__":
    for fixture in MODELS:
        if not (FIXTURES / fixture).exists():
            write(fixture)
