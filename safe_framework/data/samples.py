"""Samples as an encoder takes them, from a file, from what a row holds, or from a caller."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_framework.data import images
from safe_framework.data.addresses import InlineSample, local_file, named_file, opened
from safe_framework.data.audio import Waveform, mono, read_audio, resample
from safe_framework.data.long_sounds import FileSound, JoinedSound, long_sound
from safe_framework.data.pictures import SUFFIXES
from safe_framework.data.unread import first_bytes, missing_file, what_it_is
from safe_framework.errors import DataError, SafeError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample


def decoded(value: Any) -> Any:
    """The sound of an audio decoder, as datasets 4 and torchcodec give one; else the value itself.

    Such an object has ``get_all_samples()``, with ``data`` (channels, samples) and
    ``sample_rate``.
    """
    if not hasattr(value, "get_all_samples"):
        return value
    found = value.get_all_samples()
    channels = np.asarray(found.data, dtype=np.float32).T  # (samples, channels)
    return {"array": mono(channels, "a decoded sound"), "sampling_rate": int(found.sample_rate)}


def read_sample(
    source: Path | InlineSample,
    sampling_rate: int | None,
    place: str,
    *,
    longest: float | None = None,
) -> Sample:
    """A sample: sound at ``sampling_rate`` if there is one, otherwise an array.

    Args:
        source: its file, or what the row holds.
        sampling_rate: what to resample to, in hertz; None for what is no sampled signal.
        place: of the row, for messages.
        longest: seconds that a sound may last, beyond which nothing is decoded; None for any.

    Raises:
        DataError: it cannot be read; the message begins with the row's place.
    """
    try:
        if sampling_rate is not None:
            return read_sound(source, sampling_rate, longest=longest)
        return read_array(source) if isinstance(source, Path) else _inline_array(source)
    except SafeError as error:
        raise DataError(f"{place}: {error.message}", hint=error.hint) from error


def read_for(encoder: Encoder, source: Path | InlineSample, place: str) -> Sample:
    """A sample as an encoder takes it; a sound of several of its windows is read as it is needed.

    One that does not say how long it lasts is decoded no further than the windows allow. The
    arguments and errors are those of :func:`read_sample`.
    """
    rate, windows = encoder.sampling_rate, encoder.windows
    if rate is None or windows is None:
        return read_sample(source, rate, place)
    source = opened(source, place)
    longer_than, longest = windows.window.steps / rate, windows.longest / rate
    if isinstance(source, Path):
        found = long_sound(source, rate, longer_than)
        return found or read_sample(source, rate, place, longest=longest)
    if "joined" in source and source["seconds"] > longer_than:
        return JoinedSound(source["joined"], rate, source["seconds"])
    return read_sample(source, rate, place, longest=longest)


def open_sound(source: Path | InlineSample, longer_than: float) -> Waveform | FileSound:
    """The sound in a file or in a row at its own rate, a file's to be read as it is needed.

    Args:
        source: its file, or what the row holds.
        longer_than: seconds up to which a file is read at once.

    Raises:
        DataError: it cannot be read.
        SampleError: it is no waveform.
    """
    source = opened(source, "it")
    found = long_sound(source, None, longer_than) if isinstance(source, Path) else None
    return read_sound(source) if found is None else found


def read_sound(
    source: Path | InlineSample,
    sampling_rate: int | None = None,
    *,
    longest: float | None = None,
) -> Waveform:
    """The sound in a file or in a row, at its own rate if ``sampling_rate`` is None.

    Args:
        source: its file, or what the row holds.
        sampling_rate: what to resample to, in hertz.
        longest: seconds that it may last, beyond which nothing is decoded; None for any number.

    Raises:
        DataError: it cannot be read.
        SampleError: it is no waveform.
    """
    source = opened(source, "it")
    if isinstance(source, Path):
        return read_audio(source, sampling_rate, longest=longest)
    if (content := source.get("bytes")) is not None:
        return read_audio(content, sampling_rate, longest=longest)
    if "joined" in source:
        first = read_audio(source["joined"][0][0], sampling_rate)
        joined = JoinedSound(source["joined"], first.sampling_rate, source["seconds"])
        return Waveform(joined.values, joined.sampling_rate)
    rate = source.get("sampling_rate")
    if rate is None:
        raise DataError(
            "a sound that is an `array` needs its `sampling_rate`",
            hint="add `sampling_rate` in hertz beside it",
        )
    waveform = Waveform(_array_in(source), rate)
    return waveform if sampling_rate is None else resample(waveform, sampling_rate)


def _inline_array(held: InlineSample) -> NDArray[Any]:
    if held.get("array") is not None:
        return _array_in(held)
    return images.read_image(held["bytes"])


def _array_in(held: InlineSample) -> NDArray[Any]:
    try:
        return np.asarray(held["array"])
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"its `array` is none: {error}", hint="give as many numbers in each of its rows"
        ) from error


def read_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array that a file holds: ``.npy``, ``.npz`` with one array, or an image.

    Raises:
        DataError: the file is missing, of another kind, broken, or holds several arrays.
    """
    suffix = Path(path).suffix.lower()
    if suffix in SUFFIXES:
        return images.read_image(path)
    if suffix not in (".npy", ".npz"):
        raise DataError(
            f"`{path}` is no file that arrays are read from",
            hint=f"save it as .npy, .npz or an image: {', '.join(sorted(SUFFIXES))}",
        )
    if not os.path.isfile(path):
        raise missing_file(path, f"the file `{path}`")
    try:
        with Path(path).open("rb") as file:  # NumPy leaves its own open where bytes are broken
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            with found as arrays:
                names = list(arrays)
                if len(names) == 1:
                    return np.asarray(arrays[names[0]])
    except Exception as error:  # NumPy and zipfile raise errors of many kinds at broken bytes
        why, hint = what_it_is(first_bytes(Path(path))) or (error, "save it by numpy.save")
        raise DataError(f"`{path}` cannot be read as an array: {why}", hint=hint) from error
    raise DataError(
        f"`{path}` holds {len(names)} arrays, a sample is one", hint="save one array in each file"
    )


def as_sample(name: str, value: Any, encoder: Encoder) -> Sample:
    """What the encoder takes, read from a file where a file is named.

    Args:
        name: of the modality.
        value: a path, ``{"path": ...}``, ``{"bytes": ...}``, an ``{"array": ...}`` with its
            ``sampling_rate``, or what the processor takes, which is left as it is.
        encoder: the modality's own, to whose rate sound is resampled.

    Raises:
        SampleError: it is at an address of the network, which is not looked up.
        DataError: it cannot be read.
    """
    if isinstance(value, str) and local_file(value, Path()) is None:
        raise SampleError(
            f"`{name}` is at `{value}`, which is not read from the network",
            hint="download it and give its path",
        )
    if not isinstance(value, (str, Path, Mapping)):
        return value
    source = value if isinstance(value, Path) else named_file(value, name, Path(), f"`{name}`")
    return read_for(encoder, source, f"`{name}`")
