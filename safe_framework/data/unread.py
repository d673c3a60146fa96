"""Why a file that a row names cannot be read, where a decoder would not say."""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from safe_framework.errors import DataError

_FIRST = 512
"""Bytes of a file that are looked at."""


class Instead(NamedTuple):
    """What a file is, and what to do about it."""

    reason: str
    hint: str


def what_it_is(content: bytes) -> Instead | None:
    """What stands in place of a recording, a picture or an array; None if that is not seen.

    >>> what_it_is(b"<!DOCTYPE html><html>").reason
    "it is text, which begins with '<!DOCTYPE html><html>'"
    >>> what_it_is(bytes(range(20)))
    """
    if not content:
        return Instead("it is empty", "fetch it again")
    if content.startswith(b"version https://git-lfs"):
        return Instead("it is a pointer of Git LFS, not the file itself", "run `git lfs pull`")
    text = content[:_FIRST].decode("utf-8", "ignore")
    if len(text.encode()) < min(len(content), _FIRST) - 3 or not text.strip():
        return None
    if all(letter.isprintable() or letter.isspace() for letter in text):
        begins = " ".join(text.split())[:40]
        return Instead(f"it is text, which begins with {begins!r}", "fetch it again")
    return None


def first_bytes(path: Path) -> bytes:
    """As much of a file as ``what_it_is`` looks at."""
    with path.open("rb") as file:
        return file.read(_FIRST)


def missing_file(path: str | os.PathLike[str], called: str, hint: str = "") -> DataError:
    """The error that a file is not there, and which file of nearly its name is.

    Names are near that differ in case, in blanks or quotes around them, in slashes, or in how
    Unicode composes a letter, as those of macOS do.

    Args:
        path: where it should be.
        called: what messages call it.
        hint: where there is no such file.
    """
    wanted = Path(path)
    with suppress(OSError, ValueError):  # of names that no file can have
        if wanted.is_dir():
            return DataError(f"{called} is a folder", hint="name a file in it")
        if "\\" in str(wanted) and Path(slashed := str(wanted).replace("\\", "/")).is_file():
            return DataError(f"{called} does not exist", hint=f"did you mean `{slashed}`?")
        near = [name for name in os.listdir(wanted.parent) if _plain(name) == _plain(wanted.name)]
        if near:
            name = near[0]
            same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", wanted.name)
            other = "its letters are composed otherwise: " if same else ""
            return DataError(f"{called} does not exist", hint=f"{other}did you mean `{name}`?")
    return DataError(f"{called} does not exist", hint=hint)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip(" \t\r\n\"'")).casefold()
