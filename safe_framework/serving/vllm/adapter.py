"""An adapter beside a base that vLLM holds: its own parts, and none of the base's weights."""

from __future__ import annotations

from functools import cache

from safe_framework.core.build import load
from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError


@cache
def load_adapter(folder: str) -> SafeModel:
    """An adapter, loaded and checked as ever on its base, whose weights are then let go.

    Args:
        folder: the adapter's.

    Raises:
        SafeError: it cannot be loaded.
    """
    model = load(folder)
    without_base_weights(model)
    return model


def without_base_weights(model: SafeModel) -> None:
    """Let the weights of a base go that another process holds; its config and shapes stay."""
    model.base.to("meta")


def sense_of_sounds(model: SafeModel) -> str:
    """The modality that a sound is of which names none: the only one of sounds, or ``audio``.

    Raises:
        SafeError: there is none, or there are several.
    """
    names = [name for name, one in model.encoders.items() if one.sampling_rate is not None]
    if len(names) != 1 and "audio" not in names:
        raise SafeError(
            f"it cannot be told which of {', '.join(names) or 'no modalities'} a sound is of",
            hint="ask `safe serve --engine vllm`, whose requests name the modality of a sample",
        )
    return "audio" if "audio" in names else names[0]
