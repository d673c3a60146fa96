"""Which keywords a base's own processor takes, so that none is dropped without a word."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, get_type_hints

from safe_framework.errors import KeywordError, SafeError
from safe_framework.pretrained.base_processor import text_tokenizer
from safe_framework.utils.suggest import nearest

_PARTS = {
    "images": ("image_processor",),
    "videos": ("video_processor",),
    "audio": ("feature_extractor", "audio_processor"),
}
"""The attributes of a processor of which one reads what it is given under a keyword."""


def check_keywords(given: Iterable[str], processor: Any, own: Collection[str]) -> None:
    """Refuse what nothing reads: neither a modality, nor a parameter of ours, nor the base.

    Args:
        given: names of keyword arguments that go to the base's processor.
        processor: the base's processor or tokenizer.
        own: names that this library's processor takes: modalities first.

    Raises:
        KeywordError: one is unknown.
        SafeError: one is for pictures, videos or sound, and the base reads none.
    """
    names = list(given)
    for name in names:
        if name in _PARTS and not any(
            getattr(processor, p, None) is not None for p in _PARTS[name]
        ):
            raise SafeError(
                f"the base takes no {name}: `{type(processor).__name__}` does not read them",
                hint=f"attach a modality `{name}`, or give the base's own processor: "
                "attach(base, processor)",
            )
    known = keywords_of(processor)
    for name in names:
        if known is not None and name not in known:
            near = nearest(name, own) or nearest(name, known)
            raise KeywordError(
                f"`{name}` is neither a modality nor a keyword of the base's "
                f"`{type(processor).__name__}`",
                hint=f"{near} modalities: {', '.join(own) or 'none'}".strip(),
            )


def keywords_of(processor: Any) -> frozenset[str] | None:
    """What a processor or tokenizer can be called with; None where that is not to be seen."""
    known, others = _parameters(processor)
    if not others:
        return known
    if not any(kind.__module__.startswith("transformers.") for kind in type(processor).__mro__):
        return None
    known |= set(_typed(getattr(processor, "valid_processor_kwargs", None)))
    known |= _parameters(text_tokenizer(processor))[0]
    for part in ("image_processor", "video_processor", "feature_extractor"):
        known |= set(_typed(getattr(getattr(processor, part, None), "valid_kwargs", None)))
    return known


def _parameters(called: Any) -> tuple[frozenset[str], bool]:
    """The names of what an object is called with, and whether it takes any other name too."""
    taken = inspect.signature(type(called).__call__).parameters.values()
    others = inspect.Parameter.VAR_KEYWORD
    names = frozenset(one.name for one in taken if one.kind is not others) - {"self"}
    return names, any(one.kind is others for one in taken)


def _typed(declared: Any) -> Iterator[str]:
    """The keys of a typed dictionary, and of those inside it."""
    if not isinstance(getattr(declared, "__annotations__", None), Mapping):
        return
    try:
        hints = get_type_hints(declared)
    except NameError:  # a name that only a type checker knows
        hints = dict(declared.__annotations__)
    for name, kind in hints.items():
        yield name
        if inspect.isclass(kind) and hasattr(kind, "__total__"):
            yield from _typed(kind)
