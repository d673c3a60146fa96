"""Pictures of rows, for the base's own image processor."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from safe_framework.data.addresses import file_of, listed
from safe_framework.data.readers import Row
from safe_framework.data.unread import Instead, first_bytes, missing_file, what_it_is
from safe_framework.errors import DataError
from safe_framework.utils.optional_imports import require
from safe_framework.utils.progress import ProgressCallback, no_progress

_WHY = "pictures need Pillow"
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Endings of the files that are read as images."""

FIELDS = ("image", "images")
"""The fields of a row that hold its pictures, where no modality is called so."""


@attrs.frozen
class PictureFacts:
    """What a whole picture is like.

    Attributes:
        width: in pixels, as it is shown.
        height: likewise.
        frames: how many pictures its file holds; the first is read.
    """

    width: int
    height: int
    frames: int = 1


class Picture:
    """A picture that is opened when it is needed, so that a data set of them takes no memory.

    Two pictures are equal when their content is.

    Args:
        source: a file, the content of one, or a Pillow image.
        name: what messages call it; by default the file's name.
    """

    def __init__(self, source: Path | bytes | Any, name: str = "") -> None:
        self.source = source
        self.name = name or (str(source) if isinstance(source, Path) else "the picture in the row")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file's bytes, or of a Pillow image's size and pixels.

        Raises:
            DataError: the file is missing.
        """
        if isinstance(self.source, Path):
            self._refuse_missing(self.source)
            try:
                with self.source.open("rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                why = error.strerror or error
                raise DataError(f"the picture `{self.name}` cannot be read: {why}") from error
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        image = self.open()
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()

    def open(self) -> Any:
        """The picture as a Pillow image in RGB, turned as its EXIF data say.

        What is transparent is white, 16 bits are scaled to 8, and of several frames the first
        is read.

        Raises:
            DataError: it is missing or cannot be read, or Pillow is not installed.
        """
        return self._read(lambda image: image)[0]

    def look(self) -> PictureFacts:
        """Decode all of it, as :meth:`open` does, and say what it is like."""
        image, frames = self._read(_frames)
        return PictureFacts(image.width, image.height, frames)

    def _read(self, ask: Callable[[Any], Any]) -> tuple[Any, Any]:
        """The picture in RGB, and what ``ask`` says of the Pillow image that it is read from."""
        pillow = require("PIL.Image", "image", _WHY)
        turn = require("PIL.ImageOps", "image", _WHY).exif_transpose
        if isinstance(self.source, Path):
            self._refuse_missing(self.source)
        try:
            if isinstance(self.source, pillow.Image):
                return _rgb(pillow, turn, self.source), ask(self.source)
            content = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
            with pillow.open(content) as opened:
                return _rgb(pillow, turn, opened), ask(opened)
        except pillow.DecompressionBombError as error:
            raise DataError(
                f"the picture `{self.name}` is too large: {error}", hint="make it smaller"
            ) from error
        except Exception as error:  # a decoder may raise anything at broken bytes
            why, hint = _reason(error, self.source)
            raise DataError(
                f"the picture `{self.name}` cannot be read: {why}", hint=hint
            ) from error

    def _refuse_missing(self, file: Path) -> None:
        if not os.path.isfile(file):
            raise missing_file(
                file,
                f"the picture `{self.name}`",
                hint="correct its name: it is relative to the file of rows",
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _reason(error: Exception, source: Any) -> Instead:
    """What is wrong, without Pillow's own name for bytes in memory."""
    content = first_bytes(source) if isinstance(source, Path) else source
    if isinstance(content, bytes) and (instead := what_it_is(content)):
        return instead
    text = str(error) or type(error).__name__
    unknown = text.startswith("cannot identify image file")
    return Instead("it is no picture" if unknown else text, "convert it to PNG")


def _frames(image: Any) -> int:
    """How many pictures a file holds; a camera's MPO adds previews of the same one."""
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def _rgb(pillow: Any, turn: Callable[[Any], Any], image: Any) -> Any:
    """A Pillow image in RGB.

    Raises:
        ValueError: nothing says which of its numbers is white, or it has no pixel.
    """
    if 0 in image.size:
        raise ValueError(f"it has no pixel: it is {image.width} x {image.height}")
    image.load()
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    with contextlib.suppress(Exception):  # of EXIF data that are broken, where the picture is not
        image = turn(image)
    if sixteen_bits:
        import numpy as np

        return pillow.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its numbers, of 32 bits (mode {image.mode}), do not say what is white")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        seen = pillow.new("RGBA", image.size, "white")
        seen.alpha_composite(image.convert("RGBA"))
        image = seen
    return image.convert("RGB")


Look = PictureFacts | DataError
"""What a picture is like, or what is wrong with it."""


class RowPictures:
    """The pictures of one source's rows: each file once, and all of them looked at together.

    Args:
        modalities: of the recipe; a field that is called as one of them is that modality's.
        seen: whether the base takes pictures; asked when the first row has some. If it takes
            none, every row is read as if it had none.
        label: of the bar while they are looked at.
        progress: called with the label, how many were looked at and of how many.

    Attributes:
        blind: the first row with pictures that the base does not take, and the field.
        uses: every picture with its row and field, in order.
    """

    def __init__(
        self,
        modalities: Collection[str] = (),
        seen: Callable[[], bool] = lambda: True,
        *,
        label: str = "opening pictures",
        progress: ProgressCallback = no_progress,
    ) -> None:
        self.modalities, self._seen = modalities, seen
        self.label, self.progress = label, progress
        self.blind: tuple[str, str] | None = None
        self.uses: list[tuple[str, str, Picture]] = []
        self._files: dict[Path, Picture] = {}

    def of(self, row: Row, *, by_file_name: bool = False) -> tuple[Picture, ...]:
        """The pictures of a row, in order: of ``image``, or of ``images``.

        Each is the name of a file, relative to the row's own file; or a Pillow image, the bytes
        of a file, or ``{"path": ...}`` or ``{"bytes": ...}``, as ``datasets`` gives them. Whether
        they are whole is for :meth:`faults` to say.

        Args:
            row: that may have some.
            by_file_name: whether ``file_name`` may name one too, since it names no sample.

        Raises:
            DataError: a field holds something else, or the row has both fields.
        """
        held = {
            name: row.values[name]
            for name in FIELDS
            if name not in self.modalities and not _is_nothing(row.values.get(name))
        }
        named = row.values.get("file_name")
        if by_file_name and not held and _is_picture_name(named):
            held = {"file_name": named}
        if len(held) > 1:
            raise DataError(
                f"{row.place}: it has both `image` and `images`",
                hint="put all of them into `images`",
            )
        for name, value in held.items():
            if self.blind or not self._seen():
                self.blind = self.blind or (row.place, name)
                return ()
            found = [self._picture(one, name, row) for one in listed(value, name, row.place)]
            self.uses += [(row.place, name, picture) for picture in found]
            return tuple(found)
        return ()

    def _picture(self, value: Any, name: str, row: Row) -> Picture:
        if isinstance(value, Mapping):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, (str, os.PathLike)) and os.fspath(value):
            file = file_of(os.fspath(value), name, row.folder, row.place)
            return self._files.setdefault(file, Picture(file))
        if isinstance(value, (bytes, bytearray)):
            return Picture(bytes(value), f"the `{name}` of {row.place}")
        if value is not None and type(value).__module__.partition(".")[0] == "PIL":
            return Picture(value, f"the `{name}` of {row.place}")
        raise DataError(
            f"{row.place}: `{name}` must be the name of a picture, not {value!r:.80}",
            hint="give a file's name, its bytes, a Pillow image, or a list of these",
        )

    def looks(self) -> dict[int, Look]:
        """Decode each picture that some row had; what it is like, or its error, by its ``id``."""
        return look_at([picture for _, _, picture in self.uses], self.label, self.progress)

    def faults(self) -> dict[str, DataError]:
        """The error of each row that has a picture which is not there, or not whole."""
        looks = self.looks()
        found: dict[str, DataError] = {}
        for place, name, picture in self.uses:
            fault = looks[id(picture)]
            if isinstance(fault, DataError) and place not in found:
                found[place] = DataError(f"{place}: `{name}`: {fault.message}", hint=fault.hint)
        return found


def look_at(
    pictures: Sequence[Picture], label: str, progress: ProgressCallback = no_progress
) -> dict[int, Look]:
    """Decode every picture once, several at a time; what each is like by its ``id``."""
    each = list({id(picture): picture for picture in pictures}.values())
    looks: dict[int, Look] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (picture, found) in enumerate(zip(each, pool.map(look, each), strict=True), 1):
            looks[id(picture)] = found
            progress(label, done, len(each))
    return looks


def look(picture: Picture) -> Look:
    """What a picture is like once all of it is decoded, or what is wrong with it."""
    try:
        return picture.look()
    except DataError as error:
        return error


def blind_base(base: str, place: str, field: str) -> DataError:
    """The error that a row has a picture which nobody would see."""
    return DataError(
        f"{place}: `{field}`: it has a picture, but the base `{base}` takes none",
        hint=f'choose a base that takes pictures, or add `ignore = ["{field}"]` to [data]',
    )


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and not value)


def _is_picture_name(value: Any) -> bool:
    return isinstance(value, str) and Path(value).suffix.lower() in SUFFIXES
