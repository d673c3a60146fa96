"""What a base was when it was wrapped, kept in a few kilobytes.

Weights are not hashed: that would take seconds. A tensor is recognised by its object, its shape and
type, the counter that every in-place operation of torch raises, and 64 of its numbers, bit by bit.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.hook_inventory import HookName, class_name, hooks_on, names_of
from safe_framework.utils.tensors import as_bytes
from safe_framework.utils.torch_private import write_count

_PLACES, _RUN = 4, 16
"""Runs of numbers, from a tensor's first to within two of its last.

Of a mapped file, that reads fewer pages than single numbers would, and two tensors share one.
"""
_WORDS = 64
_PACKED = (NotImplementedError, RuntimeError, TypeError)  # what tensors of other kinds raise


@attrs.define(slots=False)
class TensorRecord:
    """What one tensor is recognised by.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
        sample: the bits of a few of its numbers; empty where it is not in memory.
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
class BaseSnapshot:
    """What a base was.

    Attributes:
        modules: class of each module by path.
        tensors: parameters and persistent buffers by path.
        settings: every value of its configs by dotted name.
        words: what its tokenizer is recognised by.
        hooks: the foreign hooks that it carried.
        replaced: methods that were replaced on a module's instance, and by what.
        training: modules in training mode.
        identity: fingerprints of the base as an adapter was loaded on it, once one was.
        changed: paths of the tensors that stage B changes in place, knowingly.
        accepted: how the base differs from the one that an adapter was made for, knowingly.
    """

    modules: Mapping[str, str]
    tensors: dict[str, TensorRecord]
    settings: Mapping[str, Any]
    words: Mapping[str, Any]
    hooks: Counter[HookName]
    replaced: Mapping[str, str]
    training: tuple[str, ...]
    identity: Mapping[str, str] | None = None
    changed: frozenset[str] = frozenset()
    accepted: tuple[str, ...] = ()

    @classmethod
    def of(cls, base: nn.Module, tokenizer: Any = None) -> BaseSnapshot:
        """The snapshot of a base and its tokenizer as they are now."""
        modules = {path or type(base).__name__: module for path, module in base.named_modules()}
        return cls(
            modules={path: class_name(type(module)) for path, module in modules.items()},
            tensors=_tensors(base),
            settings=dict(_settings(base)),
            words=_words(tokenizer),
            hooks=names_of(hooks_on(base)),
            replaced=dict(_replaced(modules)),
            training=tuple(path for path, module in modules.items() if module.training),
        )

    def note_cast(self, before: BaseSnapshot, after: BaseSnapshot) -> None:
        """Take over the types of a base that its owner cast, tensor by tensor.

        One that was changed before stays as it was recorded, so that it is found.

        Args:
            before: of the base, just before the cast.
            after: just after it.
        """
        types = set()
        for path, now in after.tensors.items():
            known, then = self.tensors.get(path), before.tensors.get(path)
            if known is None or then is None or now.dtype == known.dtype:
                continue
            if (known.shape, known.dtype, known.sample) == (then.shape, then.dtype, then.sample):
                self.tensors[path] = now
                types.add(f"its weights are {now.dtype} and were {known.dtype}")
        if types and self.identity is not None:
            self.identity = {k: v for k, v in self.identity.items() if k != "weights"}
            self.accepted = tuple(dict.fromkeys((*self.accepted, *sorted(types))))

    @property
    def digest(self) -> str:
        """A hash of what the tensors are recognised by: shapes, types, and a few numbers."""
        seen = hashlib.sha256()
        for path, mark in sorted(self.tensors.items()):
            seen.update(f"{path}|{mark.shape}|{mark.dtype}|".encode() + mark.sample)
        return seen.hexdigest()


def _tensors(base: nn.Module) -> dict[str, TensorRecord]:
    tables = {id(m.weight) for m in base.modules() if isinstance(m, nn.Embedding)}
    found: dict[str, Tensor] = dict(base.named_parameters())
    references: list[Any] = [weakref.ref(parameter) for parameter in found.values()]
    found |= _saved_buffers(base)
    references += [None] * (len(found) - len(references))
    samples = _samples(list(found.values()))
    return {
        path: _record_of(tensor, sample, id(tensor) in tables, reference)
        for (path, tensor), sample, reference in zip(
            found.items(), samples, references, strict=True
        )
    }


def _saved_buffers(base: nn.Module) -> dict[str, Tensor]:
    """The buffers that a checkpoint holds; others, such as a rotary embedding's, are derived."""
    buffers = dict(base.named_buffers())
    owners = {path.rpartition(".")[0] for path in buffers}
    saved = {
        f"{owner}.{name}".lstrip(".")
        for owner in owners
        for name in base.get_submodule(owner).state_dict(keep_vars=True)
    }
    return {path: buffer for path, buffer in buffers.items() if path in saved}


def _record_of(tensor: Tensor, sample: bytes, embedding: bool, reference: Any) -> TensorRecord:
    return TensorRecord(
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        sample=sample,
        embedding=embedding,
        frozen=not tensor.requires_grad,
        version=None if tensor.is_inference() or tensor.is_meta else write_count(tensor),
        object=None if tensor.is_meta else reference,
    )


def _samples(tensors: Sequence[Tensor]) -> list[bytes]:
    """The bits of a few numbers of each, those of one kind in one go: a GPU is asked once."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    seen = [_few(tensor) for tensor in tensors]
    for number, part in enumerate(seen):
        kinds.setdefault((type(part), part.dtype, part.device, part.ndim), []).append(number)
    found = [b""] * len(tensors)
    for numbers in kinds.values():
        for number, bits in zip(numbers, _bits([seen[n] for n in numbers]), strict=True):
            found[number] = bits
    return found


def _few(tensor: Tensor) -> Tensor:
    """A few of its numbers; none where it is not in memory, or packed without such views."""
    if tensor.is_meta:
        return torch.empty(0)
    try:
        whole, count = tensor.detach().contiguous(), tensor.numel()
        if count <= _PLACES * _RUN:
            return whole.view(-1)
        return whole.as_strided((_PLACES, _RUN), ((count - _RUN) // (_PLACES - 1), 1))
    except _PACKED:
        return torch.empty(0)


def _bits(parts: Sequence[Tensor]) -> list[bytes]:
    try:
        joined = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        bits = as_bytes(joined.cpu()).numpy().tobytes()
    except _PACKED:
        return [bits for part in parts for bits in _bits([part])] if len(parts) > 1 else [b""]
    ends = list(accumulate(part.element_size() * part.numel() for part in parts))
    return [bits[start:end] for start, end in pairwise([0, *ends])]


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
    numbers = range(0, count, max(1, count // _WORDS))
    return {
        "count": count,
        "added": {str(token): number for token, number in inner.get_added_vocab().items()},
        "special": {key: str(token) for key, token in inner.special_tokens_map.items()},
        "words": dict(zip(numbers, inner.convert_ids_to_tokens(list(numbers)), strict=True)),
    }


def _replaced(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    for path, module in modules.items():
        for method in ("forward", "generate", "__call__"):
            own = vars(module).get(method)
            if own is not None and not hasattr(module, "_hf_hook"):  # accelerate's
                yield f"{path}.{method}", class_name(own)
