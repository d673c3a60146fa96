"""Files and folders that are written whole or not at all: a kill leaves no half of one."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path


def atomic_write(path: Path, content: bytes | str | Callable[[Path], object]) -> Path:
    """Write a file under another name beside ``path``, then rename it.

    Args:
        path: of the file; its folder is made if it is missing, and an older file is replaced.
        content: bytes, text to be encoded in UTF-8, or what writes the file it is given.

    Returns:
        ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}.part")
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


def atomic_folder(folder: Path, write: Callable[[Path], object], *, overwrite: bool) -> Path:
    """Fill a temporary folder beside ``folder``, then rename it.

    Args:
        folder: to be written.
        write: fills the empty folder it is given.
        overwrite: replace a folder that is there. It is moved aside and only deleted once the new
            one is in place; if a writer was killed between the two, the next one puts it back.
            One process may overwrite a folder at a time.

    Returns:
        ``folder``.

    Raises:
        OSError: a folder that is not empty is there by the time that the new one is whole, and
            is not to be overwritten; it stays as it is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if overwrite:
        _clear_interrupted(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        write(temporary)
        temporary.chmod(0o755)
        if overwrite and folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    except BaseException:
        if old.exists():
            os.replace(old, folder)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _clear_interrupted(folder: Path) -> None:
    """Put back the folder that a killed writer had moved aside, and delete what it left."""
    for aside in folder.parent.glob(f".{folder.name}-*-old"):
        if not folder.exists():
            os.replace(aside, folder)
    for left in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
