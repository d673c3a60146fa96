"""Processors that hold a video processor, where there is no torchvision to read videos with.

transformers then makes no such processor at all; here it takes pictures as it always does.
"""

from __future__ import annotations

import sys
from inspect import signature
from typing import Any, Never

from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

from safe_framework.errors import SafeError

_LOADERS = {"image_processor": AutoImageProcessor, "feature_extractor": AutoFeatureExtractor}


class VideosNeedTorchvision(dict[str, Any]):
    """Stands where a processor has its video processor, with its settings, and takes no videos."""

    model_input_names = ()
    _auto_class = None

    def __getattr__(self, name: str) -> Any:
        """A setting, or None: SmolVLM's processor reads some while it renders a chat."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __call__(self, *videos: Any, **options: Any) -> Never:
        """Refuse videos.

        Raises:
            SafeError: always.
        """
        raise SafeError(
            "the base's own video processor needs torchvision",
            hint="install the torchvision that fits your torch: https://pytorch.org",
        )


def without_videos(kind: Any, *, video_settings: dict[str, Any] | None = None, **parts: Any) -> Any:
    """A processor of a class that wants a video processor, made without one.

    Args:
        kind: the class.
        video_settings: of the video processor, which the processor has when it is saved.
        **parts: all that its constructor takes beside the video processor.
    """
    module = sys.modules[kind.__module__]
    if getattr(module, "num2words", _no_words) is None:  # SmolVLM says with it how many frames
        vars(module)["num2words"] = _no_words
    videos = VideosNeedTorchvision(video_settings or {})
    made = kind.__new__(kind)
    made.check_argument_for_proper_class = lambda name, part: type(part)  # only while it is made
    made.__init__(**parts, video_processor=videos)
    del made.check_argument_for_proper_class
    return made


def processor_class(config: Any) -> Any:
    """The class of the processors of a config's type; None where transformers has none."""
    from transformers.models.auto import processing_auto

    mapping: Any = processing_auto.PROCESSOR_MAPPING
    return mapping.get(type(config), None)


def load_without_videos(place: str, config: Any, options: dict[str, Any]) -> Any:
    """The processor of a checkpoint as its ``from_pretrained`` makes it, but for videos.

    Args:
        place: a folder or a hub id.
        config: of the checkpoint.
        options: its revision, and whether its own code may run.
    """
    kind = processor_class(config)
    names = [name for name in kind.get_attributes() if name != "video_processor"]
    parts: dict[str, Any] = {
        name: _LOADERS.get(name, AutoTokenizer).from_pretrained(place, **options)  # type: ignore[attr-defined]  # each has it
        for name in names
    }
    settings, _ = kind.get_processor_dict(place, **options)
    taken = signature(kind.__init__).parameters.keys() - {"video_processor", *names}
    parts |= {key: settings[key] for key in taken & settings.keys()}
    return without_videos(kind, video_settings=settings.get("video_processor"), **parts)


def _no_words(number: Any) -> Never:
    raise SafeError(f"`num2words` is needed to say {number} in words", hint="pip install num2words")
