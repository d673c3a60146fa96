"""Where the file is that a row names, and whether it is a sound by its name."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from safe_framework.data.readers import Row, archives
from safe_framework.errors import DataError

SOUNDS = frozenset(
    {".aac", ".aif", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".oga", ".ogg"}
    | {".opus", ".w64", ".wav", ".wma"}
)
"""Endings of the files that are taken for sounds where no encoder says what they are."""

_SHOWN = 200  # letters of an address, in messages

InlineSample = Mapping[str, Any]
"""A sample in the row itself: ``bytes`` of a file, an ``array`` with its ``sampling_rate``, or
files that are ``joined``, each with the second at which it begins, and the ``seconds`` of all."""


def local_file(value: str, folder: Path) -> Path | None:
    """The file that a path or an address names; None if it is at an address that is not read.

    ``file://`` is a path's own, ``zip://`` and ``tar://`` name a file in an archive.


    >>> local_file("clips/a.wav", Path("/data")), local_file("https://x.org/a.wav", Path("/data"))
    (PosixPath('/data/clips/a.wav'), None)
    >>> local_file("file:///data/a%20b.wav", Path("/"))
    PosixPath('/data/a b.wav')
    """
    if "://" not in value and not value.startswith("data:"):
        return folder / value
    address = urlsplit(value)
    if address.scheme == "file" and address.netloc in ("", "localhost"):
        return Path(url2pathname(address.path))
    inside, chained, archive = value.partition("://")[2].partition("::")
    if address.scheme in archives.SCHEMES and chained:
        place = local_file(archive, folder)
        return None if place is None else archives.member(place, inside)
    return None


def file_of(value: str, name: str, folder: Path, place: str) -> Path:
    """The file that a field of a row names, whether it is there or not.

    Raises:
        DataError: it is at an address that is not read.
    """
    try:
        found = local_file(value, folder)
    except DataError as error:
        raise DataError(f"{place}: `{name}`: {error.message}", hint=error.hint) from error
    if found is None:
        raise DataError(
            f"{place}: `{name}` is at `{value[:_SHOWN]}`, which is not read from there",
            hint="download it and give its path; in an archive, `zip://a.wav::clips.zip`",
        )
    return found


def named_file(value: Any, name: str, folder: Path, place: str) -> Path | InlineSample:
    """The file that a row names for a modality, or what the row itself holds instead.

    Raises:
        DataError: it is neither, or at an address that is not read.
    """
    if hasattr(value, "get_all_samples"):
        from safe_framework.data.samples import decoded

        return decoded(value)  # type: ignore[no-any-return]
    if isinstance(value, (bytes, bytearray)) and value:
        return {"bytes": bytes(value)}
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return {**value, "bytes": _content(value["bytes"], name, place)}
        if value.get("array") is not None:
            return value
        if "joined" in value:
            return _joined(value, name, folder, place)
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise DataError(f"{place}: `{name}` must be the name of a file, not {value!r}")
    return file_of(value, name, folder, place)


def _joined(value: Mapping[str, Any], name: str, folder: Path, place: str) -> InlineSample:
    """What ``{"joined": [["a.wav", 0.0], ["b.wav", 7.5]], "seconds": 60}`` names.

    Raises:
        DataError: it is not of this form.
    """
    try:
        seconds = float(value["seconds"])
        parts = [(file_of(str(one), name, folder, place), float(at)) for one, at in value["joined"]]
    except (KeyError, TypeError, ValueError) as error:
        seconds, parts = 0.0, []
        cause: Exception | None = error
    else:
        cause = None
    if not parts or not 0 < seconds < math.inf or not all(0 <= at < seconds for _, at in parts):
        raise DataError(
            f"{place}: `{name}` joins no files, each with its time, in a number of seconds",
            hint='such as {"joined": [["a.wav", 0.0], ["b.wav", 7.5]], "seconds": 60}',
        ) from cause
    return {"joined": tuple(parts), "seconds": seconds}


def opened(source: Path | InlineSample, place: str) -> Path | InlineSample:
    """What a ``.json`` file joins, as a row itself could; any other source as it is.

    Raises:
        DataError: it cannot be read, or is not of this form.
    """
    if not isinstance(source, Path) or source.suffix != ".json":
        return source
    try:
        held = json.loads(source.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{place}: `{source}` cannot be read: {error}") from error
    return _joined(held if isinstance(held, dict) else {}, str(source), source.parent, place)


def _content(held: Any, name: str, place: str) -> bytes:
    """The content of a file in a row; in JSON, where there are no bytes, a list of numbers.

    Raises:
        DataError: it is neither.
    """
    cause: Exception | None = None
    if not isinstance(held, (str, int)):
        try:
            return bytes(held)
        except (TypeError, ValueError) as error:
            cause = error
    raise DataError(
        f"{place}: `bytes` of `{name}` must be the content of a file, not {type(held).__name__}",
        hint="a text in base64 is not read: write it into a file and name that",
    ) from cause


def sources_of(
    row: Row, modalities: Collection[str], *, by_file_name: bool = True
) -> dict[str, tuple[Path | InlineSample, ...]]:
    """Where the row's samples of each modality are, in order; one that it lacks has no key.

    Args:
        row: that may have some.
        modalities: by name.
        by_file_name: whether ``file_name`` is the sample's where there is one modality.

    Raises:
        DataError: a field holds neither the name of a file nor a sample, nor a list of them.
    """
    values = row.values
    if by_file_name and len(modalities) == 1 and values.get("file_name") is not None:
        values = {next(iter(modalities)): values["file_name"], **values}
    held = {name: listed(values.get(name), name, row.place) for name in modalities}
    return {
        name: tuple(
            named_file(one, f"{name}[{number}]" if len(each) > 1 else name, row.folder, row.place)
            for number, one in enumerate(each)
        )
        for name, each in held.items()
        if each
    }


def listed(value: Any, name: str, place: str) -> list[Any]:
    """What a field holds: one thing, several in a list (in a table, as JSON), or nothing.

    Raises:
        DataError: a cell begins as a list and is none.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a table
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place}: `{name}` begins as a list and is none: {error.msg}",
                hint='write `["a", "b"]` around the names, or one name without brackets',
            ) from error
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
