"""What a cache of keys and values holds, kept so that a call which begins again can put it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from torch import Tensor


@attrs.frozen(eq=False)
class KeptCache:
    """The state of a cache, of any class of transformers.

    Attributes:
        restore: puts it back.
    """

    restore: Callable[[], None]

    @classmethod
    def of(cls, cache: Any) -> KeptCache:
        """What ``cache`` holds now; None holds nothing.

        A layer that grows by joining never writes into what it held, so that nothing is copied of
        it. What others hold is.
        """
        puts = list[tuple[dict[str, Any], dict[str, Any]]]()
        if cache is not None:
            _keep(cache, puts, set())

        def restore() -> None:
            """Put everything back."""
            for attributes, kept in puts:
                attributes.clear()
                attributes.update(kept)

        return cls(restore)


def _keep(held: Any, puts: list[tuple[dict[str, Any], dict[str, Any]]], seen: set[int]) -> None:
    """Keep the attributes of a cache or one of its layers, and of what they hold."""
    if id(held) in seen or not hasattr(held, "__dict__"):
        return
    seen.add(id(held))
    attributes = vars(held)
    joined = _grows_by_joining(held)
    puts.append((attributes, {k: _copied(v, tensors=not joined) for k, v in attributes.items()}))
    for value in attributes.values():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if _is_cache(one):
                _keep(one, puts, seen)


def _copied(value: Any, *, tensors: bool) -> Any:
    """A value that later calls do not write into; caches within it are kept by themselves."""
    if isinstance(value, Tensor):
        return value.clone() if tensors else value
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(one, tensors=tensors) for one in value)
    if isinstance(value, dict):
        return {key: _copied(one, tensors=tensors) for key, one in value.items()}
    return value


def _is_cache(value: Any) -> bool:
    from transformers import Cache
    from transformers.cache_utils import CacheLayerMixin

    return isinstance(value, (Cache, CacheLayerMixin))


def _grows_by_joining(held: Any) -> bool:
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return type(held) in (DynamicLayer, DynamicSlidingWindowLayer)
