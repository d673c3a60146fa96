"""How a base differs from its seal, each difference named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from safe_framework.core.base_snapshot import Seal, TensorMark
from safe_framework.core.hook_inventory import hooks_on, stray


def broken(seal: Seal, base: nn.Module, tokenizer: Any = None) -> list[str]:
    """What of ``base`` and its tokenizer is no longer as it was sealed."""
    now = Seal.of(base, tokenizer)
    return [
        *_tensors(seal, now.tensors),
        *_modules(seal.modules, now.modules),
        *_changed(seal.settings, now.settings),
        *_hooks(seal, base),
        *_methods(seal.replaced, now.replaced),
        *(f"`{path}` is in training mode" for path in sorted({*now.training} - {*seal.training})),
        *_words(seal.words, now.words),
    ]


def _tensors(seal: Seal, now: Mapping[str, TensorMark]) -> Iterator[str]:
    for path, mark in seal.tensors.items():
        if path not in now:
            yield f"weight `{path}` is gone"
        elif found := _tensor(path, mark, now[path], path in seal.changed):
            yield found
    yield from (f"weight `{path}` is new" for path in now if path not in seal.tensors)


def _tensor(path: str, then: TensorMark, now: TensorMark, changed: bool) -> str:
    """The worst that happened to one tensor."""
    if then.shape != now.shape:
        if then.embedding and then.shape[1:] == now.shape[1:]:
            return f"embedding `{path}` was resized from {then.shape[0]} to {now.shape[0]} rows"
        return f"weight `{path}` had shape {then.shape} and has {now.shape}"
    if then.dtype != now.dtype:
        return f"weight `{path}` was {then.dtype} and is {now.dtype}"
    if changed:
        return ""  # stage B trains it: its numbers are its own to change
    if then.sample != now.sample and then.sample and now.sample:
        return f"weight `{path}` holds other numbers"
    if then.frozen and not now.frozen:
        return f"weight `{path}` takes a gradient: it was frozen and is not"
    if then.object is None or now.object is None:
        return ""  # a buffer, a copy of the base, or offloaded
    if then.object() is not now.object():
        return f"weight `{path}` is another parameter, put in the place of the first"
    if then.version != now.version:
        return f"weight `{path}` was written to in place"
    return ""


def _modules(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for path, kind in then.items():
        if path not in now:
            yield f"module `{path}` (`{kind}`) is gone"
        elif kind != now[path]:
            yield f"module `{path}` was a `{kind}` and is a `{now[path]}`"
    yield from (f"module `{path}` (`{now[path]}`) is new" for path in now if path not in then)


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(then.keys() | now.keys()):
        old, new = then.get(name, "missing"), now.get(name, "missing")
        if old != new:
            yield f"`{name}` was {old} and is {new}"


def _hooks(seal: Seal, base: nn.Module) -> Iterator[str]:
    for placed in stray(hooks_on(base), seal.hooks):
        module, kind, name = placed.name
        yield f"`{module}` has a stray {kind} of `{name}`"


def _methods(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name, other in now.items():
        if then.get(name) != other:
            yield f"method `{name}` was replaced by `{other}`"


def _words(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if not then or not now or then == now:
        return
    added = sorted(now["added"].keys() - then["added"].keys())
    if added:
        yield f"the tokenizer was given other tokens: {', '.join(f'`{token}`' for token in added)}"
    elif then["count"] != now["count"]:
        yield f"the tokenizer had {then['count']} tokens and has {now['count']}"
    yield from _changed(then["special"], now["special"])
    other = [number for number, word in then["words"].items() if now["words"].get(number) != word]
    if other and then["count"] == now["count"]:
        yield f"the tokenizer has another word for token {other[0]}"
