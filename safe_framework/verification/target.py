"""From the name of an adapter, a recipe or a base to the model that is to be verified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safe_framework.config.schema import Attend, BaseSpec
from safe_framework.core.adapter import CONFIG
from safe_framework.core.build import build, load
from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError
from safe_framework.interfaces import registry
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.types import Frames, all_real
from safe_framework.pretrained.base_model import load_base
from safe_framework.utils import catalogue
from safe_framework.utils.run_folder import adapter_in

_DIM = 16


class MadeUpEncoder(Encoder):
    """An encoder whose samples are finished frames, (frames, dim) each and all of one length."""

    dim = _DIM

    def prepare(self, samples: Any) -> dict[str, Tensor]:
        """Stack the samples."""
        return {"values": torch.stack([torch.as_tensor(sample) for sample in samples])}

    def forward(self, **inputs: Tensor) -> Frames:
        """The frames as they came, none of them masked."""
        return Frames(inputs["values"], all_real(inputs["values"]))


def open_target(target: str, device: str | None = None) -> tuple[SafeModel, Path | None]:
    """The model that ``target`` names, and the adapter's folder if it is one.

    Args:
        target: folder of an adapter or of its run, a recipe's file or name, or a base: a folder,
            a card or a hub id.
        device: where to put the model; by default where it loads.

    Raises:
        SafeError: it is none of them, or it cannot be loaded.
    """
    path = adapter_in(target)
    if (path / CONFIG).is_file():
        return load(path, device=device), path
    if path.suffix == ".toml" or target in catalogue.recipes():
        return build(target, device=device), None
    base, tokenizer = load_base(BaseSpec(model=target))
    return with_made_up_modality(base.to(device) if device else base, tokenizer), None


def with_made_up_modality(
    base: Any,
    tokenizer: Any = None,
    *,
    example: Mapping[str, Any] | None = None,
    attend: Attend = "all",
) -> SafeModel:
    """The base with a fresh modality of made-up frames, of the shipped plugins.

    Args:
        base: a transformers model.
        tokenizer: of it, if there is one.
        example: keyword arguments on which it runs, where it does not run on plain text.
        attend: where in the text the modality acts.

    Raises:
        SafeError: the base cannot be served.
    """
    model = SafeModel(base, tokenizer, example=example)
    facts, encoder = model.facts(), MadeUpEncoder()
    projector: type[Any] = registry.projectors.load("standard")
    fusion: type[Any] = registry.fusion_adapters.load("lora")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.add_modality(
            "sense",
            encoder=encoder,
            projector=projector(encoder.dim, facts.hidden_size, tokens=4, hidden_dim=32),
            fusion=fusion(facts, layers=_some_layers(model)),
            attend=attend,
        )
    return model


def _some_layers(model: SafeModel) -> list[int]:
    """The first, a middle and the last of the layers that can be fused."""
    served = [
        layer for layer in range(model.stack.count) if layer not in model.stack.unsupported_layers
    ]
    if not served:
        raise SafeError(f"`{type(model.base).__name__}` has no layer that can be fused")
    return sorted({served[0], served[len(served) // 2], served[-1]})
