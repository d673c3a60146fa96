"""The processor of a base, also where what its videos need is not installed.

The processors of some types (Qwen2-VL, InternVL, SmolVLM) have a part for videos, which needs
torchvision, and SmolVLM's needs num2words. Their pictures need neither.
"""

from __future__ import annotations

import sys
from typing import Any, Never

from safe_framework.errors import CheckpointError
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio


def load_processor(place: str, *, trust_remote_code: bool = False, **common: Any) -> Any:
    """What ``AutoProcessor`` loads from a checkpoint.

    Where torchvision is missing, a processor that wants it for videos alone is loaded without its
    part for videos: giving it one is an error then, which says what to install.

    Args:
        place: a folder or a hub id.
        trust_remote_code: let the checkpoint run code of its own.
        **common: ``revision`` and the like, for every part of it.
    """
    set_aside_broken_torchaudio()
    from transformers import AutoProcessor
    from transformers.utils.import_utils import is_torchvision_available

    kind = None if is_torchvision_available() else _type_with_videos(place, common)
    if kind is None:
        auto: Any = AutoProcessor
        return auto.from_pretrained(place, trust_remote_code=trust_remote_code, **common)
    taking = _takes_no_videos(kind)
    settings, _ = taking.get_processor_dict(place, **common)
    parts = [
        NoVideos(settings.get(name, {}))
        if name == "video_processor"
        else _part(name, place, trust_remote_code, common)
        for name in taking.get_attributes()
    ]
    return _as(kind, taking.from_args_and_dict(parts, settings))


def without_videos(kind: Any, **parts: Any) -> Any:
    """A processor whose part for videos refuses them; the other parts and options are given.

    Args:
        kind: its class.
        **parts: what that is made with, but for ``video_processor``.
    """
    return _as(kind, _takes_no_videos(kind)(**parts, video_processor=NoVideos()))


class NoVideos(dict[str, Any]):
    """Stands in a processor for its part for videos, with the settings of that part."""

    _auto_class = None
    model_input_names: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        """A setting, or None: SmolVLM asks for some while it renders a chat."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __call__(self, *_: Any, **__: Any) -> Never:
        """Refuse the videos.

        Raises:
            CheckpointError: always; it says what to install.
        """
        _refuse_videos()


def _takes_no_videos(kind: Any) -> Any:
    """The class, whose instances take ``NoVideos`` for their part for videos.

    Without torchvision transformers has no class to compare that part's with, and every one is
    refused.
    """
    module = sys.modules[kind.__module__]
    if getattr(module, "num2words", _refuse_videos) is None:  # of SmolVLM: says a video's length
        vars(module)["num2words"] = _refuse_videos

    def check(self: Any, name: str, part: Any) -> Any:
        if isinstance(part, NoVideos):
            return NoVideos
        return kind.check_argument_for_proper_class(self, name, part)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})


def _as(kind: Any, processor: Any) -> Any:
    """The processor as an instance of its published class, which can be pickled."""
    processor.__class__ = kind
    return processor


def _type_with_videos(place: str, common: dict[str, Any]) -> Any:
    """The class of the checkpoint's processor, if it has a part for videos."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = type(AutoConfig.from_pretrained(place, **common))
    kind: Any = PROCESSOR_MAPPING.get(config, None)
    return kind if kind is not None and "video_processor" in kind.get_attributes() else None


def _part(name: str, place: str, trust_remote_code: bool, common: dict[str, Any]) -> Any:
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    known: dict[str, Any] = {
        "tokenizer": AutoTokenizer,
        "image_processor": AutoImageProcessor,
        "feature_extractor": AutoFeatureExtractor,
    }
    if name not in known:
        raise CheckpointError(
            f"the `{name}` of `{place}`'s processor cannot be loaded without torchvision",
            hint="pip install torchvision",
        )
    return known[name].from_pretrained(place, trust_remote_code=trust_remote_code, **common)


def _refuse_videos(*_: Any, **__: Any) -> Never:
    raise CheckpointError(
        "this base's processor reads videos with torchvision, which is not installed",
        hint="pip install torchvision num2words, or give it `images`",
    )
