"""Files and folders that are written whole or not at all: a kill leaves no half of one."""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

try:
    import fcntl as _fcntl
except ImportError:  # Windows: writers of one process wait for each other, and no others
    fcntl: Any = None
else:
    fcntl = _fcntl


def atomic_write(path: Path, content: bytes | str | Callable[[Path], object]) -> Path:
    """Write a file under another name beside ``path``, then rename it.

    Args:
        path: of the file; its folder is made if it is missing, and an older file is replaced.
        content: bytes, text to be encoded in UTF-8, or what writes the file it is given.

    Returns:
        ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{_hidden(path.name)}{uuid.uuid4().hex[:8]}.part")
    try:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def atomic_folder(
    folder: Path,
    write: Callable[[Path], object],
    *,
    overwrite: bool,
    own: Callable[[str], bool] = lambda name: True,
) -> Path:
    """Fill a temporary folder beside ``folder``, then rename it.

    A link stays one: what it points to is written. A folder that cannot be moved, because it is a
    mount point or because this process stands in it, keeps its place: its files are replaced one by
    one, so that a kill at that moment can leave some old and some new ones.

    Args:
        folder: to be written.
        write: fills the empty folder it is given.
        overwrite: replace a folder that is there. It is moved aside and only deleted once the new
            one is in place; if a writer was killed between the two, the next one puts it back.
            One writer at a time: others wait.
        own: whether a name in a folder that is replaced is that of a writer. What has another one
            is somebody else's, and moves into the new folder.

    Returns:
        ``folder``.

    Raises:
        OSError: a folder that is not empty is there by the time that the new one is whole, and
            is not to be overwritten; it stays as it is.
    """
    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if not overwrite:
        _fill_and_place(target, write, lambda new: os.replace(new, target))
        return folder
    with _one_writer(target):
        _clear_interrupted(target, own)
        _fill_and_place(target, write, lambda new: _replace_folder(target, new, own))
    return folder


def _fill_and_place(
    target: Path, write: Callable[[Path], object], place: Callable[[Path], object]
) -> None:
    """Fill a folder that nobody sees, and put it in its place; nothing is left of a failure."""
    inside = _cannot_move(target)  # then what is beside it may be out of reach, or another disk's
    hidden = f"{_hidden(target.name)}{uuid.uuid4().hex[:8]}.new"
    new = (target if inside else target.parent) / hidden
    new.mkdir()
    try:
        write(new)
        with suppress(OSError):  # file systems without modes
            new.chmod(0o755)
        place(new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace_folder(target: Path, new: Path, own: Callable[[str], bool]) -> None:
    """Put ``new`` where ``target`` is, with what in that is not ours."""
    if _cannot_move(target):
        _replace_files(target, new, own)
        return
    old = new.with_suffix(".old")
    try:
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    except BaseException as error:
        if old.exists():
            os.replace(old, target)
        elif isinstance(error, OSError) and error.errno in (errno.EBUSY, errno.EXDEV):
            _replace_files(target, new, own)  # a mount that does not look like one
            return
        raise
    _move_foreign(old, target, own)
    shutil.rmtree(old, ignore_errors=True)


def _replace_files(target: Path, new: Path, own: Callable[[str], bool]) -> None:
    """Make what is ours in ``target`` what ``new`` holds, in the order in which it was written."""
    made = sorted(new.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in (*made[-1:], *target.iterdir()):  # what was written last says that all is whole
        if own(path.name) and not _TEMPORARY.fullmatch(path.name):
            _remove(target / path.name)
    for path in made:
        shutil.move(path, target / path.name)


def _move_foreign(old: Path, target: Path, own: Callable[[str], bool]) -> None:
    if old.is_dir():
        for path in old.iterdir():
            if not own(path.name) and not (target / path.name).exists():
                os.replace(path, target / path.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _cannot_move(folder: Path) -> bool:
    """Whether a folder must stay where it is: a mount point, or one this process stands in."""
    try:
        return folder.is_dir() and (folder.is_mount() or Path.cwd().is_relative_to(folder))
    except FileNotFoundError:  # the folder that this process stands in was deleted
        return False


def _hidden(name: str) -> str:
    """What temporary names beside one begin with; they fit where the name itself does."""
    encoded = os.fsencode(name)
    return f".{name if len(encoded) <= _LONG else sha256(encoded).hexdigest()[:32]}-"


_LONG = 240
"""Bytes of a name beside which there is no room for more: file systems allow 255."""
_TEMPORARY = re.compile(r"\..*-[0-9a-f]{8}\.(new|old)")
_LOCKS: defaultdict[Path, threading.RLock] = defaultdict(threading.RLock)
_LOCKED: set[Path] = set()
"""Folders whose lock this process has: a writer within a writer does not wait for itself."""


@contextmanager
def _one_writer(target: Path) -> Iterator[None]:
    """Wait for other writers beside ``target``, of this process and of others."""
    parent = target.parent
    with _LOCKS[parent], ExitStack() as held:
        if fcntl is not None and parent not in _LOCKED:
            folder = os.open(parent, os.O_RDONLY)
            held.callback(os.close, folder)  # which gives the lock back
            with suppress(OSError):  # file systems without locks
                fcntl.flock(folder, fcntl.LOCK_EX)
            _LOCKED.add(parent)
            held.callback(_LOCKED.discard, parent)
        yield


def _clear_interrupted(folder: Path, own: Callable[[str], bool]) -> None:
    """Put back the folder that a killed writer had moved aside, and delete what it left."""
    left = [
        path
        for place in (folder.parent, folder)
        if place.is_dir()
        for path in place.iterdir()
        if _TEMPORARY.fullmatch(path.name) and path.name.startswith(_hidden(folder.name))
    ]
    for aside in [path for path in left if path.suffix == ".old"]:
        if not folder.exists():
            os.replace(aside, folder)
        else:
            _move_foreign(aside, folder, own)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
