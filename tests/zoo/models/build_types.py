"""Which types of model transformers has, by task."""

from __future__ import annotations

from typing import Any

_MAPPINGS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "image_text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}


def types() -> list[tuple[str, str]]:
    """Every (task, model type) of the installed transformers, in a fixed order.

    A type of two tasks is named under both, unless one class serves them; then the later of
    causal, image_text, seq2seq names it.
    """
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for task in _MAPPINGS:
        for model_type, name in class_names(task).items():
            found[model_type, name] = (task, model_type)
    return sorted(found.values())


def class_names(task: str) -> dict[str, str]:
    """The name of the class that serves each model type of a task."""
    from transformers.models.auto import modeling_auto

    mapping: dict[str, Any] = getattr(modeling_auto, _MAPPINGS[task])
    return {kind: name if isinstance(name, str) else name[0] for kind, name in mapping.items()}
