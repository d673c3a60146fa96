"""Sound files as arrays: whole, or an error that says what is missing.

libsndfile reads the first stream of a file and stops, and takes a file whose end is missing for a
shorter one. Here streams that stand one behind another are all read, and what a file's header
promises is compared with what there is. What libsndfile cannot read, such as M4A, WebM and the
sound of a video, PyAV reads where it is installed.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from safe_framework.data.unread import what_it_is
from safe_framework.errors import DataError
from safe_framework.utils.optional_imports import require

Channels = npt.NDArray[np.float32]
"""Amplitudes, (samples, channels)."""

_BLOCK = 1 << 20  # samples read at a time: a stream's header may not say how many there are
_STREAMED_BLOCK = 1 << 16  # the same where no more than that is to be held
_FLAC_STREAM = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the marker, and STREAMINFO's header
_MP3_INFO = re.compile(rb"\xff[\xe2-\xff]..\0{9,34}(?:Xing|Info)", re.DOTALL)
"""The frame before an MP3's first, which says how many there are: a decoder stops behind them."""
_OGG_PAGE = struct.Struct("<4sBB8sIIIB")  # RFC 3533, section 6
_OGG_BEGINS, _OGG_ENDS = 2, 4
_PRIMING = 0.2  # seconds by which a codec's frames may be fewer than their file says
_TRAILING = 1024  # bytes that programs may leave behind the chunks of a file
_MOST = 0xFFFFFFFF  # that a chunk's size can say


class SoundTooLongError(DataError):
    """A sound that lasts longer than was allowed; no more of it was decoded."""


def decode(content: bytes, called: str, longest: float | None = None) -> tuple[Channels, int]:
    """All the sound in a file.

    Args:
        content: the file's bytes.
        called: what messages call it.
        longest: seconds that it may last; None for any number.

    Returns:
        Amplitudes, nominally from -1 to 1, (samples, channels), and samples a second, in hertz.

    Raises:
        DataError: it cannot be read, its end is missing, it holds no samples, or an extra is not
            installed.
        SoundTooLongError: it lasts longer.
    """
    require("soundfile", "audio", "sound needs `soundfile`")
    room, parts = longest, list[tuple[Channels, int]]()
    for stream in _streams(content):
        parts.append(_decode_stream(stream, called, room))
        if unread := _unread(stream):
            warnings.warn(f"{called} {unread}", stacklevel=2)
        room = None if room is None else room - len(parts[-1][0]) / parts[-1][1]
    shapes = {(rate, channels.shape[1]) for channels, rate in parts}
    if len(shapes) > 1:
        found = " and ".join(f"{rate} Hz with {count} channels" for rate, count in sorted(shapes))
        raise DataError(
            f"{called} has several streams behind one another, of {found}",
            hint="cut it into a file for each",
        )
    whole = np.concatenate([channels for channels, _ in parts])
    if not len(whole):
        raise DataError(f"{called} holds no samples")
    return whole, parts[0][1]


def _decode_stream(content: bytes, called: str, longest: float | None) -> tuple[Channels, int]:
    import soundfile

    try:
        with soundfile.SoundFile(_Seekable(_sized(content))) as file:
            promised, rate = file.frames, file.samplerate
            size = max(1, _BLOCK // file.channels)
            blocks: list[Channels] = []
            while not blocks or len(blocks[-1]):
                blocks.append(file.read(size, dtype="float32", always_2d=True))
                _check_length(sum(map(len, blocks)), rate, longest, called)
    except SoundTooLongError:
        raise
    except (RuntimeError, OSError, ValueError) as error:
        if missing := _missing(content):
            raise _truncated(called, missing) from error
        if instead := what_it_is(content):
            why, hint = instead
            raise DataError(f"{called} cannot be read: {why}", hint=hint) from error
        return _by_pyav(content, called, longest, error)
    whole = np.concatenate(blocks)
    missing = _missing(content)
    if not missing and len(whole) < promised < 2**62:
        missing = f"its header says {promised} samples, and {len(whole)} can be read"
    if missing:
        raise _truncated(called, missing)
    return whole, rate


def _truncated(called: str, missing: str) -> DataError:
    return DataError(
        f"{called} is truncated: {missing}",
        hint="fetch it again; if it is all there is, write it anew: ffmpeg -i OLD NEW.wav",
    )


def _check_length(samples: int, rate: int, longest: float | None, called: str) -> None:
    if longest is not None and samples > longest * rate:
        raise SoundTooLongError(
            f"{called} lasts longer than the {longest:g} seconds that are left for it",
            hint="send a shorter one",
        )


class _Seekable(io.BytesIO):
    """Bytes as libsndfile reads a file: a place before the beginning is not gone to."""

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go there if it is a place."""
        try:
            return super().seek(offset, whence)
        except ValueError:  # soundfile prints what is raised here, and goes on
            return self.tell()


def _sized(content: bytes) -> bytes:
    """A WAV file as it is; with the sizes that were left at 0, if it was written into a pipe."""
    at = content.find(b"data", 12)
    if content[:8] != b"RIFF\0\0\0\0" or at < 0 or any(content[at + 4 : at + 8]):
        return content
    size = (len(content) - at - 8).to_bytes(4, "little")
    return (
        content[:4]
        + (len(content) - 8).to_bytes(4, "little")
        + content[8 : at + 4]
        + size
        + content[at + 8 :]
    )


def _missing(content: bytes | mmap) -> str:
    """What of a file is missing by its own words; empty if nothing is, or it does not say."""
    for name, at, size in _chunks(memoryview(content)):
        there = max(len(content) - at, 0)
        if name in (b"data", b"SSND") and not _streamed(at, size) and size > there:
            return f"its header says {size} bytes of sound, and {there} are there"
    if content[:4] == b"OggS":
        pages = list(_ogg_pages(content))
        if not pages or not pages[-1][1] & _OGG_ENDS:
            return "it has no last page"
    return ""


def _unread(content: bytes) -> str:
    """What stands behind the sound of a WAV file and is no chunk of it; empty if nothing does."""
    sound = 0
    for name, at, size in _chunks(memoryview(content)) if content[:2] == b"RI" else ():
        if name == b"data" and sound:
            return f"has {size} bytes of sound more, in a chunk of their own, which are not read"
        behind = len(content) - at + 8
        if sound and not name.decode("latin-1").isprintable() and behind > _TRAILING:
            return f"says that it has {sound} bytes of sound; {behind} more behind it are not read"
        sound = size if name == b"data" else sound
    return ""


class _Layout(NamedTuple):
    """How the chunks of a kind of file stand behind one another."""

    header: struct.Struct  # a chunk's name and size
    first: int  # where the first chunk begins
    counted: int = 0  # bytes of a chunk's header that its size counts
    multiple: int = 2  # of bytes, at which chunks begin


_LAYOUTS = {
    b"RIFF": _Layout(struct.Struct("<4sI"), 12),
    b"RF64": _Layout(struct.Struct("<4sI"), 12),
    b"FORM": _Layout(struct.Struct(">4sI"), 12),  # AIFF
    b"caff": _Layout(struct.Struct(">4sq"), 8, multiple=1),  # CAF
    b"riff": _Layout(struct.Struct("<16sQ"), 40, counted=24, multiple=8),  # Wave64
}


def _chunks(content: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk of a file that is made of them: its name, where it begins, and its size."""
    kind = bytes(content[:4])
    if kind == b".snd" and len(content) >= 12:  # AU, which has one
        yield (b"data", *struct.unpack_from(">II", content, 4))
    if kind not in _LAYOUTS:
        return
    layout = _LAYOUTS[kind]
    at = layout.first
    while at + layout.header.size <= len(content):
        name, size = layout.header.unpack_from(content, at)
        at, size = at + layout.header.size, size - layout.counted
        if name[:4] == kind:  # the next stream
            return
        yield name[:4], at, size
        if size < 0 or _streamed(at, size):
            return
        at += size + -size % layout.multiple


def _streamed(at: int, size: int) -> bool:
    """Whether a chunk's size is what a writer leaves when it cannot go back to the header.

    That is nothing, or all that a header can say, of the chunk or of the file to its end.
    """
    return size in (0, _MOST, _MOST - at)


def _ogg_pages(content: bytes | mmap) -> Iterator[tuple[int, int]]:
    """Where each whole page of an Ogg file begins, and its flags."""
    at = 0
    while at + _OGG_PAGE.size <= len(content):
        magic, _, flags, _, _, _, _, count = _OGG_PAGE.unpack_from(content, at)
        end = at + _OGG_PAGE.size + count
        length = end - at + sum(content[at + _OGG_PAGE.size : end])
        if magic != b"OggS" or at + length > len(content):
            return
        yield at, flags
        at += length


def _streams(content: bytes) -> list[bytes]:
    """The streams that stand behind one another in a file; most files have one."""
    starts = _stream_starts(content)
    return [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]


def _stream_starts(content: bytes | mmap) -> list[int]:
    starts = [0]
    if content[:4] == b"fLaC":
        starts = [found.start() for found in _FLAC_STREAM.finditer(content)] or [0]
    elif content[:4] == b"OggS":
        ended = False
        for at, flags in _ogg_pages(content):
            if ended and flags & _OGG_BEGINS:
                starts.append(at)
            ended = bool(flags & _OGG_ENDS)
    elif content[:3] == b"ID3" or content[:1] == b"\xff":
        starts += [found.start() for found in _MP3_INFO.finditer(content)][1:]
    else:
        view = memoryview(content)
        while end := _end_of_first(view[starts[-1] :]):
            starts.append(starts[-1] + end)
    return starts


def _end_of_first(content: memoryview) -> int:
    """Where another stream of the same kind begins behind the first; 0 where none does."""
    multiple = _LAYOUTS[kind].multiple if (kind := bytes(content[:4])) in _LAYOUTS else 1
    end = 0
    for _, at, size in _chunks(content):
        end = 0 if size < 0 or _streamed(at, size) else at + size + -size % multiple
    return end if content[end : end + 4] == kind else 0


def _by_pyav(
    content: bytes, called: str, longest: float | None, error: Exception
) -> tuple[Channels, int]:
    """What libsndfile could not read, by FFmpeg's decoders.

    Raises:
        DataError: PyAV is not installed, or cannot read it either.
    """
    parts, count, rate = list[Channels](), 0, 0
    for channels, rate in _pyav_blocks(io.BytesIO(content), called, error):
        parts.append(channels)
        count += len(channels)
        _check_length(count, rate, longest, called)
    return np.concatenate(parts), rate


def _pyav_blocks(
    file: io.BytesIO | str, called: str, error: Exception
) -> Iterator[tuple[Channels, int]]:
    """The sound of a file frame by frame, by FFmpeg's decoders, with samples a second.

    Raises:
        DataError: PyAV is not installed, or cannot read it, or its end is missing.
    """
    av = _pyav(called, error)
    try:
        with av.open(file) as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None or stream.codec_context is None:  # no sound, or of an unknown codec
                raise DataError(f"{called} has no sound that can be read")
            rate = stream.rate
            known = container.format.name.startswith("mov,mp4") and stream.duration
            promised = float(stream.duration * stream.time_base) if known else 0.0
            # Not "fltp": of 8 planes and more PyAV reads some that are none, and Python ends.
            resampler, count = av.AudioResampler("flt", stream.layout, rate), 0
            for frame in chain(container.decode(stream), [None]):
                for made in resampler.resample(frame):
                    values = made.to_ndarray()[0].reshape(-1, made.layout.nb_channels)
                    count += len(values)
                    yield values.astype(np.float32, copy=False), rate
    except DataError:
        raise
    except (av.FFmpegError, ValueError) as worse:
        raise DataError(
            f"{called} cannot be read: {worse}", hint="convert it: ffmpeg -i OLD NEW.wav"
        ) from worse
    if not count:
        raise DataError(f"{called} holds no samples")
    if count < (promised - _PRIMING) * rate:
        raise _truncated(called, f"it says that it has {promised:.2f} s, and less can be read")


def _pyav(called: str, error: Exception) -> Any:
    try:
        return import_module("av")
    except (ImportError, OSError):
        raise DataError(
            f"{called} cannot be read: {error}",
            hint="for M4A, WebM, MP4 and other formats: pip install 'safe-framework[media]'; "
            "or convert it: ffmpeg -i OLD NEW.wav",
        ) from error


def decode_blocks(path: Path, called: str) -> Iterator[tuple[Channels, int]]:
    """The sound of a file from its beginning to its end, a block at a time.

    Args:
        path: of a file with one stream of sound, as those are of which ``length_of`` says a length.
        called: what messages call it.

    Returns:
        Amplitudes, (samples, channels), and samples a second, in hertz.

    Raises:
        DataError: as :func:`decode`.
    """
    require("soundfile", "audio", "sound needs `soundfile`")
    import soundfile

    try:
        file = soundfile.SoundFile(path)
    except (RuntimeError, OSError, ValueError) as error:
        yield from _pyav_blocks(str(path), called, error)
        return
    with file:
        size, read = max(1, _STREAMED_BLOCK // file.channels), 0
        try:
            while len(block := file.read(size, dtype="float32", always_2d=True)):
                read += len(block)
                yield block, file.samplerate
        except (RuntimeError, OSError) as error:
            raise _truncated(called, f"{read} samples of it can be read") from error
        if read < file.frames < 2**62:
            said = f"its header says {file.frames} samples, and {read} can be read"
            raise _truncated(called, said)


class Length(NamedTuple):
    """What a file's header says of its sound: how long it lasts, and its samples a second."""

    seconds: float
    rate: int


def length_of(path: Path) -> Length | None:
    """How long a file's sound lasts by its header.

    None where that cannot be read or is not said, or where the file's end is missing or several
    streams stand one behind another: then :func:`decode` says more.
    """
    soundfile = require("soundfile", "audio", "sound needs `soundfile`")
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            if len(_stream_starts(content)) > 1 or _missing(content):
                return None
        try:
            found = soundfile.info(path)
            frames, rate = found.frames, found.samplerate
        except (RuntimeError, OSError):
            return _length_by_pyav(path)
    except (OSError, ValueError, DataError):  # no such file, or an empty one
        return None
    return Length(frames / rate, rate) if 0 < frames < 2**62 else None


def _length_by_pyav(path: Path) -> Length | None:
    av = _pyav("", OSError())
    try:
        with av.open(str(path)) as container:
            sound = next(iter(container.streams.audio), None)
            if sound is None or sound.codec_context is None or not container.duration:
                return None
            return Length(container.duration / av.time_base, sound.rate)
    except (av.FFmpegError, ValueError):
        return None
