"""What a base was when it was wrapped, kept in a few kilobytes.

Weights are not hashed: that would take seconds. A tensor is recognised by its object, its shape and
type, the counter that every in-place operation of torch raises, and the bits at 64 places.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
from torch import Tensor, nn

from safe_framework.bits import integers
from safe_framework.certificate.hooks import HookName, class_name, hooks_on, names_of

_PLACES = 64


@attrs.define(slots=False)
class TensorMark:
    """What one tensor is recognised by.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
        sample: its bits at a few places; empty where it is not in memory.
        embedding: whether it is the table of an ``nn.Embedding``.
        frozen: whether it takes no gradient.
        version: how often it was written in place; None where torch does not count.
        object: gives the tensor as long as it lives; None in a copy, and for buffers.
    """

    shape: tuple[int, ...]
    dtype: str
    sample: bytes
    embedding: bool
    frozen: bool
    version: int | None
    object: Callable[[], Tensor | None] | None

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a base has other objects, whose counters begin anew."""
        return self.__dict__ | {"object": None, "version": None}


@attrs.define(eq=False)
class Seal:
    """What a base was.

    Attributes:
        modules: class of each module by path.
        tensors: parameters and persistent buffers by path.
        settings: every value of its configs by dotted name.
        words: what its tokenizer is recognised by.
        hooks: the foreign hooks that it carried.
        replaced: methods that were replaced on a module's instance, and by what.
        training: modules in training mode.
        identity: fingerprints that an adapter recorded of the base, once one was loaded.
        changed: paths of the tensors that stage B changes in place, knowingly.
    """

    modules: Mapping[str, str]
    tensors: Mapping[str, TensorMark]
    settings: Mapping[str, Any]
    words: Mapping[str, Any]
    hooks: Counter[HookName]
    replaced: Mapping[str, str]
    training: tuple[str, ...]
    identity: Mapping[str, str] | None = None
    changed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, base: nn.Module, tokenizer: Any = None) -> Seal:
        """The seal of a base and its tokenizer as they are now."""
        modules = {path or type(base).__name__: module for path, module in base.named_modules()}
        return cls(
            modules={path: class_name(type(module)) for path, module in modules.items()},
            tensors=dict(_tensors(base)),
            settings=dict(_settings(base)),
            words=_words(tokenizer),
            hooks=names_of(hooks_on(base)),
            replaced=dict(_replaced(modules)),
            training=tuple(path for path, module in modules.items() if module.training),
        )

    @property
    def glance(self) -> str:
        """A hash of what the tensors are recognised by: shapes, types, and bits at some places."""
        seen = hashlib.sha256()
        for path, mark in sorted(self.tensors.items()):
            seen.update(f"{path}|{mark.shape}|{mark.dtype}|".encode() + mark.sample)
        return seen.hexdigest()


def _tensors(base: nn.Module) -> Iterator[tuple[str, TensorMark]]:
    tables = {id(m.weight) for m in base.modules() if isinstance(m, nn.Embedding)}
    for path, parameter in base.named_parameters():
        yield path, _mark(parameter, id(parameter) in tables, weakref.ref(parameter))
    persistent = base.state_dict(keep_vars=True).keys()
    for path, buffer in base.named_buffers():
        if path in persistent:
            yield path, _mark(buffer, False, None)


def _mark(tensor: Tensor, embedding: bool, reference: Any) -> TensorMark:
    return TensorMark(
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        sample=_sample(tensor),
        embedding=embedding,
        frozen=not tensor.requires_grad,
        version=None if tensor.is_inference() or tensor.is_meta else tensor._version,
        object=None if tensor.is_meta else reference,
    )


def _sample(tensor: Tensor) -> bytes:
    if tensor.is_meta or not tensor.numel():
        return b""
    try:
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // _PLACES)
        return integers(flat[::step][:_PLACES].cpu()).numpy().tobytes()
    except (NotImplementedError, RuntimeError, TypeError):  # a packed type without such views
        return b""


def _settings(base: nn.Module) -> Iterator[tuple[str, Any]]:
    for name in ("config", "generation_config"):
        config = getattr(base, name, None)
        if config is not None and hasattr(config, "to_dict"):
            yield from _flat(config.to_dict(), name)


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}")
    else:
        yield name, str(value)


def _words(tokenizer: Any) -> dict[str, Any]:
    """Count, added and special tokens of a tokenizer, and some of the words between."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    try:
        return _word_marks(inner) if inner is not None else {}
    except Exception:  # any object may serve as a tokenizer; one without words has none to lose
        return {}


def _word_marks(inner: Any) -> dict[str, Any]:
    count = len(inner)
    places = range(0, count, max(1, count // _PLACES))
    return {
        "count": count,
        "added": {str(token): number for token, number in inner.get_added_vocab().items()},
        "special": {key: str(token) for key, token in inner.special_tokens_map.items()},
        "words": dict(zip(places, inner.convert_ids_to_tokens(list(places)), strict=True)),
    }


def _replaced(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    for path, module in modules.items():
        for method in ("forward", "generate", "__call__"):
            own = vars(module).get(method)
            if own is not None and not hasattr(module, "_hf_hook"):  # accelerate's
                yield f"{path}.{method}", class_name(own)
