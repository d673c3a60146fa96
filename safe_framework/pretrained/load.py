"""A model of transformers with what prepares its inputs, from one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safe_framework.errors import CheckpointError
from safe_framework.pretrained.location import resolve
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio
from safe_framework.utils.quiet import quietly


def load_pretrained(
    checkpoint: str,
    architecture: Any,
    *preparers: Any,
    kind: str,
    title: str,
    key_mapping: Mapping[str, str] | None = None,
) -> tuple[Any, ...]:
    """Load a model in float32 and its preparers, and nothing that is not in the checkpoint.

    Args:
        checkpoint: a card, a folder or a hub id.
        architecture: the model's class.
        *preparers: classes of its feature extractor, tokenizer or the like.
        kind: the ``model_type`` that the checkpoint's config must name.
        title: what messages call such a model, as ``"Whisper"``.
        key_mapping: patterns of weights' names and what stands there instead, where the class is
            a part of what the checkpoint holds.

    Returns:
        The model in evaluation mode, then each preparer.

    Raises:
        CheckpointError: it cannot be had, is of another kind, or lacks weights.
    """
    import torch

    set_aside_broken_torchaudio()
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    place = resolve(checkpoint)
    try:
        with quietly():
            found = PretrainedConfig.get_config_dict(place)[0].get("model_type")
            if found not in (kind, None):
                raise CheckpointError(f"`{checkpoint}` is a {found}, not a {title}")
            known = AutoConfig if kind in CONFIG_MAPPING else architecture.config_class
            config = known.from_pretrained(place)
            model, report = architecture.from_pretrained(
                place,
                # one that is not of its class holds it as a part, and is read again
                config=config if isinstance(config, architecture.config_class) else None,
                dtype=torch.float32,
                output_loading_info=True,
                key_mapping=None if key_mapping is None else dict(key_mapping),
            )
            others = [preparer.from_pretrained(place) for preparer in preparers]
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"`{checkpoint}` cannot be loaded as a {title}: {why}") from error
    if missing := sorted(report["missing_keys"]):
        lacks = f"`{checkpoint}` lacks {len(missing)} weights, such as `{missing[0]}`"
        raise CheckpointError(lacks)
    return model, *others
