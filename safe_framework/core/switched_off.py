"""Which modalities an ``off()`` block switches off: in its own thread or task, and in no other.

A thread begins with an empty context, so a block does not reach a thread that is started inside
it, as that of a text streamer is. Nothing in Python says which thread started another one, so that
is told, and not guessed at.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakSet

import attrs


class OffElsewhere(UserWarning):
    """A modality is on in a thread that was started while a block of another has it off."""


@attrs.frozen(eq=False)
class _Block:
    """An open ``off()`` block.

    Attributes:
        names: ids of models (copies of one share its owner key) and names of their modalities.
        older: the threads that were there before it.
    """

    names: frozenset[tuple[int, str]]
    older: WeakSet[threading.Thread]


_OFF: ContextVar[tuple[_Block, ...]] = ContextVar("safe_framework_off", default=())
_OPEN: set[_Block] = set()
"""The open blocks of all threads."""


@contextmanager
def switched_off(model: object, names: Iterable[str]) -> Iterator[None]:
    """Within the block, these modalities of ``model`` are off, in this thread or task alone."""
    off = frozenset((id(model), name) for name in names)
    block = _Block(off, WeakSet(threading.enumerate()))
    _OFF.set((*_OFF.get(), block))
    _OPEN.add(block)
    try:
        yield
    finally:  # generators may leave their blocks in any order, and in another context
        _OPEN.discard(block)
        _OFF.set(tuple(other for other in _OFF.get() if other is not block))


def is_switched_off(model: object, name: str) -> bool:
    """Whether a ``switched_off`` block of this thread or task holds for the modality."""
    return any((id(model), name) in block.names for block in _OFF.get())


def warn_if_off_elsewhere(model: object, name: str) -> None:
    """Say that a modality is on, where this thread was started while another has it off.

    A pool's threads and those of a server's framework are not told: they serve whoever asks.

    Warns:
        OffElsewhere: it was, and still has it off.
    """
    if not _OPEN:
        return
    thread = threading.current_thread()
    target = getattr(thread, "_target", None)  # there while it runs
    pooled = getattr(target, "__module__", "") == "concurrent.futures.thread"
    if type(thread) is not threading.Thread or pooled:
        return
    blocks = [block for block in tuple(_OPEN) if (id(model), name) in block.names]
    if any(thread not in block.older for block in blocks):
        warnings.warn(
            f"`{name}` is on in this thread, which was started while another thread has it off: "
            "an `off()` block holds for its own thread alone\n"
            "hint: enter `off()` inside the thread, or start it with the block's context: "
            "Thread(target=contextvars.copy_context().run, args=(function,))",
            OffElsewhere,
            stacklevel=4,
        )
