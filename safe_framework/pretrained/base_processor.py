"""What prepares a base's own inputs: its processor where its type has one, else its tokenizer.

A processor turns text, pictures, videos and sound into tensors; a tokenizer text alone. Which of
the two a base has is decided here and nowhere else.
"""

from __future__ import annotations

import warnings
from importlib import util
from typing import Any

from safe_framework.errors import CheckpointError
from safe_framework.pretrained.base_outline import known_types

_MISSING = (ImportError, OSError, ValueError)  # what transformers raises where a file is missing


class PicturesUnreadable(UserWarning):
    """A base that sees was loaded with its tokenizer alone, so that it cannot be given pictures."""


def load_processor(
    place: str, config: Any, common: dict[str, str], *, trust_remote_code: bool = False
) -> Any:
    """The processor of a checkpoint, or its tokenizer where its type reads text alone.

    Without torchvision, which no video can be read without, a processor takes all but videos.

    Args:
        place: a folder or a hub id.
        config: of the checkpoint.
        common: its revision, or the GGUF file in it.
        trust_remote_code: let the checkpoint run code of its own.

    Raises:
        CheckpointError: its processor cannot be loaded, and it reads no text without a picture.

    Warns:
        PicturesUnreadable: the base sees, and its processor cannot be loaded.
    """
    import transformers

    loader: Any = transformers.AutoProcessor
    options: dict[str, Any] = {**common, "trust_remote_code": trust_remote_code}
    if "gguf_file" in common or not has_processor(config):
        return _tokenizer(place, options)
    try:
        if _wants_torchvision(config):
            from safe_framework.pretrained.without_torchvision import load_without_videos

            return load_without_videos(place, config, options)
        found = loader.from_pretrained(place, **options)
    except _MISSING as error:
        _tell(place, config, error)
        return _tokenizer(place, options)
    if sees(config) and not takes_images(found):
        _tell(place, config, None)
    return found


def has_processor(config: Any) -> bool:
    """Whether a base of this config reads more than text: pictures, videos or sound."""
    from transformers.models.auto import processing_auto

    known: Any = processing_auto
    return sees(config) or config.model_type in known.PROCESSOR_MAPPING_NAMES


def sees(config: Any) -> bool:
    """Whether a base of this config continues texts with pictures."""
    from transformers.models.auto import modeling_auto

    return config.model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def text_tokenizer(processor: Any) -> Any:
    """The tokenizer inside a processor; a tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def takes_images(processor: Any) -> bool:
    """Whether a tokenizer or processor can be given pictures."""
    return getattr(processor, "image_processor", None) is not None


def image_settings(processor: Any) -> dict[str, Any]:
    """What decides which pixels a base sees of a picture; nothing where it sees none.

    Settings that are not set are left out, and so are names of classes and formats, which
    differ between versions of transformers that make the same pixels.
    """
    images = getattr(processor, "image_processor", None)
    if images is None:
        return {}
    return {
        key: value
        for key, value in images.to_dict().items()
        if value not in (None, {}, [])
        and not key.startswith("_")
        and not key.endswith(("_type", "_class", "_format", "_map"))
    }


def _tokenizer(place: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place, **options)


def _tell(place: str, config: Any, error: Exception | None) -> None:
    """Warn that a base cannot be given pictures; refuse one that reads no text without one."""
    if not sees(config):
        return
    why = f": {str(error).strip().splitlines()[0]}" if error is not None else ""
    hint = (
        "save the processor beside the model: "
        "AutoProcessor.from_pretrained(...).save_pretrained(folder)"
    )
    known = known_types().get(config.model_type)
    if known is not None and known.needs_picture:
        raise CheckpointError(
            f"`{place}` ({config.model_type}) reads no text without a picture, and its processor, "
            f"which reads pictures, cannot be loaded{why}",
            hint=hint,
        ) from error
    warnings.warn(
        f"`{place}` ({config.model_type}) is loaded without its image processor, so that it cannot "
        f"be given pictures{why}\nhint: {hint}",
        PicturesUnreadable,
        stacklevel=4,
    )


def _wants_torchvision(config: Any) -> bool:
    from safe_framework.pretrained.without_torchvision import processor_class

    if util.find_spec("torchvision") is not None:
        return False
    kind = processor_class(config)
    return kind is not None and "video_processor" in kind.get_attributes()
