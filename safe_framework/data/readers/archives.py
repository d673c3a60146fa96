"""Archives: unpacked once into the cache, and read as the folder that they hold.

A file in one is named ``zip://clips/a.wav::clips.zip``, as fsspec names it. The files of a
WebDataset shard that have a name in common are one row (https://github.com/webdataset/webdataset).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safe_framework.data.readers.datasets import LIST, folder_rows, is_litter, is_saved
from safe_framework.data.readers.row import Row
from safe_framework.errors import DataError
from safe_framework.pretrained.location import cache_folder
from safe_framework.utils.files import atomic_folder

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SCHEMES = ("zip", "tar")

_BROKEN = (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile,
           tarfile.TarError)  # fmt: skip
"""What reading a broken or encrypted archive raises."""
_SOUNDS = frozenset(
    {".aac", ".aif", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus",
     ".wav", ".w64", ".weba", ".webm"}
)  # fmt: skip
_PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_TEXTS = {".txt": "text", ".cls": "label"}


def is_archive(path: Path) -> bool:
    """Whether a name is that of an archive that is read."""
    return path.name.lower().endswith(ENDINGS)


def member(archive: Path, name: str) -> Path:
    """The file called ``name`` in an archive, where the archive is unpacked.

    Raises:
        DataError: the archive cannot be read, or has no such file.
    """
    found = unpacked(archive) / name
    if not found.is_file():
        raise DataError(
            f"the archive `{archive}` has no file `{name}`",
            hint=f"see `python -m zipfile -l {archive}`" if archive.suffix == ".zip" else "",
        )
    return found


def unpacked(archive: Path) -> Path:
    """The folder in the cache into which an archive is unpacked, once for what it holds now.

    Raises:
        DataError: it is missing, broken, encrypted, or larger than the disk.
    """
    if not archive.is_file():
        raise DataError(f"the archive `{archive}` does not exist")
    state = archive.stat()
    facts = repr((str(archive.resolve()), state.st_size, state.st_mtime_ns))
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    stem = next(archive.name[: -len(e)] for e in ENDINGS if archive.name.lower().endswith(e))
    target = cache_folder() / "archives" / key / (stem or "archive")
    if target.is_dir():
        return target
    try:
        atomic_folder(target, lambda folder: _extract(archive, folder), overwrite=False)
    except DataError:
        raise
    except _BROKEN as error:
        if target.is_dir():  # another process was first
            return target
        raise DataError(
            f"the archive `{archive}` cannot be unpacked: {error}",
            hint="fetch it again, or unpack it and name the folder",
        ) from error
    return target


def _extract(archive: Path, folder: Path) -> None:
    """Unpack what stays inside the folder, if the disk has room for it."""
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as file:
            _check_room(archive, sum(one.file_size for one in file.infolist()), folder)
            file.extractall(folder)
        return
    with tarfile.open(archive) as file:
        members = file.getmembers()
        _check_room(archive, sum(one.size for one in members), folder)
        file.extractall(folder, members, filter="data")


def _check_room(archive: Path, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"the archive `{archive}` holds {size:,} bytes, and the cache has room for {free:,}",
            hint="set SAFE_CACHE to a folder on a larger disk",
        )


def archive_rows(
    archive: Path, listed: Mapping[str, Callable[[Path], Iterator[Row]]]
) -> Iterator[Row]:
    """The rows of an archive: those of the folder in it, or of a WebDataset shard.

    Args:
        archive: to read.
        listed: the reader of a list in a folder by its ending.

    Raises:
        DataError: it cannot be unpacked, or its folder cannot be read.
    """
    folder = _top(unpacked(archive), listed)
    if not _is_described(folder, listed):
        samples = _by_key(folder)
        if any(len(parts) > 1 for parts in samples.values()) or any(
            "/" not in key for key in samples
        ):
            return (
                _sample_row(f"{archive.name}/{key}", folder, parts)
                for key, parts in samples.items()
            )
    return folder_rows(folder, listed)


def shards_in(folder: Path, listed: Mapping[str, Any]) -> list[Path]:
    """The archives in a folder that holds nothing else, in order; none if it is another one."""
    if _is_described(folder, listed):
        return []
    entries = sorted(path for path in folder.iterdir() if not is_litter(path.name))
    return entries if all(path.is_file() and is_archive(path) for path in entries) else []


def _top(folder: Path, listed: Mapping[str, Any]) -> Path:
    """The folder that an archive was made of, where that is all that is in it."""
    entries = [path for path in folder.iterdir() if not is_litter(path.name)]
    if _is_described(folder, listed) or len(entries) != 1 or not entries[0].is_dir():
        return folder
    (only,) = entries
    inside = [path for path in only.iterdir() if not is_litter(path.name)]
    return only if _is_described(only, listed) or all(path.is_dir() for path in inside) else folder


def _is_described(folder: Path, listed: Mapping[str, Any]) -> bool:
    return is_saved(folder) or any((folder / f"{LIST}{ending}").is_file() for ending in listed)


def _by_key(folder: Path) -> dict[str, dict[str, Path]]:
    """By what files have in common before the first dot of their names, each by the rest."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder)
        if not any(is_litter(part) for part in inside.parts):
            key, _, rest = path.name.partition(".")
            found.setdefault((inside.parent / key).as_posix(), {})[rest] = path
    return found


def _sample_row(place: str, folder: Path, parts: Mapping[str, Path]) -> Row:
    """A row of a shard: JSON is its fields, text is text, of all else the name of the file.

    A sound is called ``audio``, a picture ``image``, ``.txt`` ``text`` and ``.cls`` ``label``; a
    file whose name says more, as ``KEY.question.txt``, is called so.
    """
    values: dict[str, Any] = {}
    for rest, path in parts.items():
        name, _, _ = rest.rpartition(".")
        ending = path.suffix.lower()
        try:
            if ending == ".json" and not name:
                held = json.loads(path.read_text("utf-8"))
                if not isinstance(held, dict):
                    raise ValueError(f"a {type(held).__name__} is no object")
                values = {**held, **values}
            elif ending == ".json":
                values[name] = json.loads(path.read_text("utf-8"))
            elif ending in _TEXTS:
                values[name or _TEXTS[ending]] = path.read_text("utf-8").strip()
            else:
                values[name or _called(ending)] = path.relative_to(folder).as_posix()
        except (ValueError, RecursionError) as error:
            return Row(place, folder, error=DataError(f"{place}: `{path.name}`: {error}"))
    return Row(place, folder, values)


def _called(ending: str) -> str:
    if ending in _SOUNDS:
        return "audio"
    return "image" if ending in _PICTURES else ending.removeprefix(".") or "file_name"
