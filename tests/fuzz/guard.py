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
    "os.chmod": (0,), "os.chown": (0,), "os.link": (1,), "os.mkdir": (0,), "os.remove": (0,),
    "os.rename": (0, 1), "os.rmdir": (0,), "os.symlink": (1,), "os.truncate": (0,),
    "os.utime": (0,), "shutil.rmtree": (0,),
}  # fmt: skip
"""Events of Python's audit that change files, and which of their arguments are the paths."""

_IN_FOLDERS = ("os.mkdir", "os.remove", "os.rmdir")
"""Events whose last argument is the open folder that a name is in, or -1; of such a one, that of
``shutil.rmtree`` told already."""

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
        memory: bytes that it took beyond what those before it took.
    """

    kind: str
    told: str = ""
    seconds: float = 0.0
    memory: int = 0

    @property
    def right(self) -> bool:
        """Whether it ended as it should."""
        return self.kind in ("read", "refused")


class _Audit:
    """Notes what is done outside some folders, while they are watched."""

    def __init__(self) -> None:
        self.folders: tuple[Path, ...] = ()
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folders:
            return
        if event in _FORBIDDEN:
            self.seen.append(f"{event}{arguments!r:.200}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            self._changes(event, arguments[:1])
        elif event in _CHANGES and not (event in _IN_FOLDERS and arguments[-1] != -1):
            self._changes(event, tuple(arguments[place] for place in _CHANGES[event]))

    def _changes(self, event: str, paths: tuple[Any, ...]) -> None:
        for path in paths:
            if isinstance(path, int) or os.fspath(path) in (os.devnull, os.fsencode(os.devnull)):
                continue
            where = Path(os.path.abspath(os.fsdecode(path)))
            if not any(where.is_relative_to(folder) for folder in self.folders):
                self.seen.append(f"{event} {where}")

    @contextmanager
    def watching(self, folders: tuple[Path, ...]) -> Iterator[list[str]]:
        """Within the block, note what changes outside of ``folders``."""
        self.seen, self.folders = [], folders
        compiled = sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # of modules that are first imported here
        try:
            yield self.seen
        finally:
            self.folders, sys.dont_write_bytecode = (), compiled


_AUDIT = _Audit()  # a hook stays for as long as the process does


def ended(case: Callable[[], object], *folders: Path) -> Outcome:
    """Run a case that may write to some folders, and say how it ended.

    Args:
        case: reads what was mutated.
        *folders: all that it may change.
    """
    memory, start = _peak(), time.process_time()
    with warnings.catch_warnings(), _AUDIT.watching(folders) as seen:
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
    return Outcome(kind, told, seconds, grown)


def _peak() -> int:
    """Most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
