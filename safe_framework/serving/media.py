"""Sounds, pictures and arrays out of a request's text, checked before they are decoded.

Nothing here opens a file or, but for hosts that were allowed by name, an address: what a request
sends is bytes. A few of them may stand for very many samples or pixels, so a header is asked first,
and a sound is decoded no further than it may last.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_framework.data.audio import Waveform, read_audio
from safe_framework.data.audio_files import SoundTooLongError
from safe_framework.data.images import read_image
from safe_framework.errors import SafeError
from safe_framework.serving.limits import Limits, RequestError
from safe_framework.utils.optional_imports import require

SOUNDS = ("wav", "flac", "mp3", "ogg")
PICTURES = ("png", "jpeg", "webp", "gif", "bmp")
_RATES = (1_000, 384_000)
_CHANNELS = 16
_SECONDS = 10.0
"""That a fetched picture may take."""


def decoded(text: Any, place: str) -> bytes:
    """The bytes of base64.

    Raises:
        RequestError: it is none.
    """
    if not isinstance(text, str):
        raise RequestError(f"`{place}` must be base64 in a string", param=place)
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"`{place}` is no base64: {error}", param=place) from error
    if not found:
        raise RequestError(f"`{place}` is empty", param=place)
    return found


def sound(content: bytes, kind: Any, place: str, rate: int, longest: float) -> Waveform:
    """A sound at the rate that its encoder takes.

    Args:
        content: of a file.
        kind: of file, as the request says.
        place: in the request, for messages.
        rate: samples a second, in hertz.
        longest: seconds that it may last.

    Raises:
        RequestError: it cannot be read, or lasts too long.
    """
    if kind not in SOUNDS:
        raise RequestError(
            f"`{place}` is of format {kind!r:.40}",
            hint=f"formats: {', '.join(SOUNDS)}",
            param=place,
        )
    if _kind_of_sound(content) != kind:
        raise RequestError(f"`{place}` is no {kind} file", param=place)
    _check_header(content, place, longest)
    try:
        return read_audio(content, rate, longest=longest)
    except SoundTooLongError as error:
        raise _too_long(place, longest) from error
    except SafeError as error:
        message = error.message.replace("the sound in the row", f"`{place}`")
        raise RequestError(message, hint=error.hint, param=place) from error


def _kind_of_sound(content: bytes) -> str:
    """By its first bytes; empty for none that is known."""
    if content[:4] in (b"RIFF", b"RF64") and content[8:12] == b"WAVE":
        return "wav"
    if content[:4] in (b"fLaC", b"OggS"):
        return "flac" if content[:1] == b"f" else "ogg"
    framed = len(content) > 1 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0
    return "mp3" if content[:3] == b"ID3" or framed else ""


def _check_header(content: bytes, place: str, longest: float) -> None:
    """Refuse a sound by what its header says of it.

    Raises:
        RequestError: it would last too long, or is of no rate and channels that a sound has.
    """
    soundfile = require("soundfile", "audio", "sound needs `soundfile`")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, channels, frames = file.samplerate, file.channels, file.frames
    except (RuntimeError, OSError, ValueError) as error:
        raise RequestError(f"`{place}` cannot be read as a sound", param=place) from error
    if not _RATES[0] <= rate <= _RATES[1]:
        raise RequestError(f"`{place}` is sampled at {rate} Hz", param=place)
    if channels > _CHANNELS:
        raise RequestError(f"`{place}` has {channels} channels", param=place)
    if longest * rate < frames < 2**62:  # more is what a stream's header says
        raise _too_long(place, longest)


def _too_long(place: str, longest: float) -> RequestError:
    return RequestError(
        f"`{place}` lasts longer than {longest:g} seconds",
        hint="send a shorter one",
        status=413,
        param=place,
        code="audio_too_long",
    )


def picture(content: bytes, place: str, limits: Limits) -> Any:
    """A picture in colours as Pillow has it.

    Raises:
        RequestError: it cannot be read, or has too many pixels.
    """
    return _opened(content, place, limits).convert("RGB")


def _opened(content: bytes, place: str, limits: Limits) -> Any:
    """A picture as it is in a file, decoded.

    Raises:
        RequestError: it cannot be read, or has too many pixels.
    """
    pillow = require("PIL.Image", "image", "pictures need Pillow")
    try:
        image = pillow.open(io.BytesIO(content), formats=[kind.upper() for kind in PICTURES])
        width, height = image.size
    except pillow.DecompressionBombError as error:
        raise _too_large(place, limits) from error
    except Exception as error:  # a decoder may raise anything at broken bytes
        raise RequestError(
            f"`{place}` is no picture that can be read",
            hint=f"formats: {', '.join(PICTURES)}",
            param=place,
        ) from error
    if width * height > limits.pixels:
        raise _too_large(place, limits)
    try:
        image.load()
        return image
    except Exception as error:
        raise RequestError(f"`{place}` is a broken picture", param=place) from error


def _too_large(place: str, limits: Limits) -> RequestError:
    return RequestError(
        f"`{place}` has more than {limits.pixels} pixels",
        hint="send a smaller one",
        status=413,
        param=place,
        code="picture_too_large",
    )


def picture_at(url: Any, place: str, limits: Limits) -> Any:
    """The picture of a data URI, or at an address whose host is allowed.

    Raises:
        RequestError: it is neither, or the picture cannot be used.
    """
    if not isinstance(url, str):
        raise RequestError(f"`{place}` must be a string", param=place)
    if url[:5].lower() == "data:":
        head, comma, data = url[5:].partition(",")
        if not comma or not head.lower().startswith("image/") or not head.endswith(";base64"):
            raise RequestError(
                f"`{place}` is no picture in base64",
                hint="send data:image/png;base64,...",
                param=place,
            )
        return picture(decoded(data, place), place, limits)
    return picture(fetched(url, place, limits), place, limits)


def fetched(url: str, place: str, limits: Limits) -> bytes:
    """What lies at an address of an allowed host; redirections are not followed.

    Raises:
        RequestError: the host is not allowed, or does not give it.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise RequestError(f"`{place}` is no address", param=place) from error
    if parts.scheme not in ("http", "https") or host not in limits.hosts:
        raise RequestError(
            f"`{place}` is not fetched: this server reads data URIs"
            + (f", and addresses of {', '.join(limits.hosts)}" if limits.hosts else ""),
            hint="send the picture itself: data:image/png;base64,...",
            param=place,
        )
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_SECONDS) as answer:
            content: bytes = answer.read(limits.body_bytes + 1)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise RequestError(f"`{place}` could not be fetched", param=place) from error
    if len(content) > limits.body_bytes:
        raise RequestError(f"`{place}` is too large", status=413, param=place)
    return content


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An allowed host does not send us elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Nowhere."""


def array(content: bytes, place: str, limits: Limits) -> NDArray[Any]:
    """The array of a ``.npy`` file.

    Raises:
        RequestError: it is none of numbers, or its header promises more than there is.
    """
    try:
        shape, dtype = _npy_header(content)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or dtype.kind not in "biuf" or size > len(content):
            raise ValueError("it is none of as many numbers as there are bytes")
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy raises errors of many kinds at broken bytes
        raise RequestError(
            f"`{place}` cannot be read as an array of numbers",
            hint="save it by numpy.save, and send the file in base64",
            param=place,
        ) from error
    if found.size > 4 * limits.pixels or found.ndim == 0:
        raise RequestError(
            f"`{place}` has {found.size} numbers in {found.ndim} axes", status=413, param=place
        )
    return np.asarray(found)


def _npy_header(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
        version, np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    return shape, dtype


def sample(
    part: Mapping[str, Any], place: str, rate: int | None, longest: float, limits: Limits
) -> Any:
    """The sample of a part of type ``safe_sample``.

    Args:
        part: with ``data`` in base64, and its ``format``.
        place: in the request, for messages.
        rate: that its encoder takes, in hertz; None for what is no sound.
        longest: seconds that a sound may last.
        limits: of a request.

    Raises:
        RequestError: it cannot be used.
    """
    kind, content = part.get("format"), decoded(part.get("data"), f"{place}.data")
    if rate is not None:
        return sound(content, kind, f"{place}.data", rate, longest)
    if kind == "npy":
        return array(content, f"{place}.data", limits)
    if kind in PICTURES:
        return read_image(_opened(content, f"{place}.data", limits))
    raise RequestError(
        f"`{place}.format` is {kind!r:.40}",
        hint=f"formats: npy, {', '.join(PICTURES)}",
        param=f"{place}.format",
    )
