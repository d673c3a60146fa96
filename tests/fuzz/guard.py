"""What a case may do: end, or raise an error of the project; and nothing beside that."""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from safe_framework.errors import SafeError

MOST_SECONDS = 5.0
"""Processor time after which a case counts as one that hangs."""

MOST_BYTES = 1 << 30
"""Memory that one case may take beyond what those before it took."""

LONGEST_MESSAGE = 9_000
"""Letters of an error's message: a file is not to be printed whole."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.chmod": 1, "os.chown": 1, "os.link": 2, "os.mkdir": 1, "os.remove": 1, "os.rename": 2,
    "os.rmdir": 1, "os.symlink": 2, "os.truncate": 1, "os.utime": 1, "shutil.rmtree": 1,
}  # fmt: skip
"""Events of Python's audit that change files, and how many paths each begins with."""

_FORBIDDEN = {
    "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.startfile", "os.system",
    "pickle.find_class", "socket.connect", "socket.getaddrinfo", "subprocess.Popen",
}  # fmt: skip
"""Events of what no file may bring about."""


@attrs.frozen
class Outcome:
    """How a case ended.

    Attributes:
        kind: ``"read"``, ``"refused"``, or the kind of fault.
        told: the error's message, or what is wrong.
        seconds: of processor time.
    """

    kind: str
    told: str = ""
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether it ended as it should."""
        return self.kind in ("read", "refused")


class _Audit:
    """Notes what is done outside a folder, while one is watched."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _FORBIDDEN:
            self.seen.append(f"{event}{arguments!r:.200}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            self._changes(event, arguments[:1])
        elif event in _CHANGES:
            self._changes(event, arguments[: _CHANGES[event]])

    def _changes(self, event: str, paths: tuple[Any, ...]) -> None:
        for path in paths:
            if isinstance(path, int) or os.fspath(path) in (os.devnull, os.fsencode(os.devnull)):
                continue
            where = Path(os.path.abspath(os.fsdecode(path)))
            if self.folder is not None and not where.is_relative_to(self.folder):
                self.seen.append(f"{event} {where}")

    @contextmanager
    def watching(self, folder: Path) -> Iterator[list[str]]:
        """Within the block, note what changes outside ``folder``."""
        self.seen, self.folder = [], folder
        try:
            yield self.seen
        finally:
            self.folder = None


_AUDIT = _Audit()  # a hook stays for as long as the process does


def ended(case: Callable[[], object], folder: Path) -> Outcome:
    """Run a case that may write to a folder, and say how it ended.

    Args:
        case: reads what was mutated.
        folder: all that it may change.
    """
    memory, start = _peak(), time.process_time()
    with warnings.catch_warnings(), _AUDIT.watching(folder) as seen:
        warnings.simplefilter("ignore")
        try:
            case()
            kind, told = "read", ""
        except SafeError as error:
            kind, told = "refused", str(error)
        except (Exception, SystemExit) as error:
            last = traceback.extract_tb(error.__traceback__)
            where = [f"{Path(f.filename).name}:{f.lineno}" for f in last][-6:]
            kind, told = "raw error", f"{type(error).__name__}: {error!s:.300} ({' '.join(where)})"
    seconds, grown = time.process_time() - start, _peak() - memory
    if kind == "refused" and not 0 < len(told) <= LONGEST_MESSAGE:
        kind, told = "message", f"{len(told)} letters: {told:.200}"
    if grown > MOST_BYTES:
        kind, told = "memory", f"{grown >> 20} MiB more ({kind}: {told:.300})"
    if seconds > MOST_SECONDS:
        kind, told = "hang", f"{seconds:.1f} s ({kind}: {told:.300})"
    if seen:
        kind, told = "outside", "; ".join(seen)[:600]
    return Outcome(kind, told, seconds)


def _peak() -> int:
    """Most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
