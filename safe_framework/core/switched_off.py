"""Which modalities an ``off()`` block switches off: in its own thread or task, and in no other.

A thread begins with an empty context, so a block does not reach a thread that is started inside
it, as a text streamer's is. That is told rather than guessed at: a pool's thread lives on and
serves others.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import attrs

_STARTS = ("_thread.start_new_thread", "_thread.start_joinable_thread")
"""The audit events of a thread that starts, raised in the thread that starts it."""


class OffElsewhere(UserWarning):
    """A modality is on in a thread that was started inside a block in which it is off."""


@attrs.define(eq=False)
class _Block:
    """An ``off()`` block.

    Attributes:
        names: ids of models (copies of one share its owner key) and names of their modalities.
        entered: whether it is still open.
    """

    names: frozenset[tuple[int, str]]
    entered: bool = True


_OFF: ContextVar[tuple[_Block, ...]] = ContextVar("safe_framework_off", default=())
_STARTED: WeakKeyDictionary[threading.Thread, tuple[_Block, ...]] = WeakKeyDictionary()
"""The blocks in which a thread was started, where there are some."""


@contextmanager
def switched_off(model: object, names: Iterable[str]) -> Iterator[None]:
    """Within the block, these modalities of ``model`` are off, in this thread or task alone."""
    _notice_threads()
    block = _Block(frozenset((id(model), name) for name in names))
    token = _OFF.set((*_OFF.get(), block))
    try:
        yield
    finally:
        block.entered = False
        _OFF.reset(token)


def is_switched_off(model: object, name: str) -> bool:
    """Whether a ``switched_off`` block of this thread or task holds for the modality."""
    return any((id(model), name) in block.names for block in _OFF.get())


def warn_if_off_elsewhere(model: object, name: str) -> None:
    """Say that a modality is on, where it was switched off around the start of this thread.

    Warns:
        OffElsewhere: it was, and still is there.
    """
    if not _STARTED:
        return
    blocks = _STARTED.get(threading.current_thread(), ())
    if any(block.entered and (id(model), name) in block.names for block in blocks):
        warnings.warn(
            f"`{name}` is on in this thread, which was started inside an `off()` block: a block "
            "holds for its own thread alone\n"
            "hint: enter `off()` inside the thread, or start it with the block's context: "
            "Thread(target=contextvars.copy_context().run, args=(function,))",
            OffElsewhere,
            stacklevel=4,
        )


@cache
def _notice_threads() -> None:
    """From now on, note which blocks a thread is started in: nothing else tells a thread's parent.

    An audit hook cannot be removed again; this one looks at a name and is done.
    """

    def note(event: str, arguments: Any) -> None:
        """Remember the blocks of the thread that starts another."""
        if event in _STARTS and (blocks := _OFF.get()):
            started = getattr(arguments[0], "__self__", None)
            if isinstance(started, threading.Thread):
                _STARTED[started] = blocks

    sys.addaudithook(note)
