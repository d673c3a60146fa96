"""An adapter beside a base that vLLM holds: its own parts, and none of the base's weights."""

from __future__ import annotations

from functools import cache

from safe_framework.core.build import load
from safe_framework.core.modality import Modality
from safe_framework.core.model import SafeModel
from safe_framework.errors import AdapterError


@cache
def load_adapter(folder: str) -> SafeModel:
    """An adapter, loaded and checked as ever on its base, whose weights are then let go.

    Args:
        folder: the adapter's.

    Raises:
        AdapterError: its modality takes no sound.
        SafeError: it cannot be loaded.
    """
    model = load(folder)
    modality = only_modality(model)
    if modality.encoder.sampling_rate is None:
        raise AdapterError(
            f"vLLM cannot serve `{folder}`: `{modality.name}` takes no sound",
            hint="serve it by `safe serve --engine transformers`",
        )
    without_base_weights(model)
    return model


def without_base_weights(model: SafeModel) -> None:
    """Let the weights of a base go that another process holds; its config and shapes stay."""
    model.base.to("meta")


def only_modality(model: SafeModel) -> Modality:
    """The modality of a model that has one."""
    (name,) = model.modalities
    return model.modality(name)
