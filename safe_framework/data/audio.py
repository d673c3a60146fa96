"""Sound: a mono waveform that knows its rate, and reading one from a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import numpy as np
import numpy.typing as npt

from safe_framework.errors import DataError, SampleError

if TYPE_CHECKING:
    from types import ModuleType


def _float32(values: Any) -> Any:
    if isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.floating):
        return np.ascontiguousarray(values, dtype=np.float32)
    return values


@attrs.frozen(eq=False)
class Waveform:
    """A mono recording.

    Attributes:
        values: amplitudes, nominally from -1 to 1, (samples,).
        sampling_rate: samples a second, in hertz.

    Raises:
        SampleError: the values are not one channel of floats, or the rate is not positive.

    >>> Waveform(np.zeros(8000), 16000).seconds
    0.5
    """

    values: Annotated[npt.NDArray[np.float32], "samples"] = attrs.field(converter=_float32)
    sampling_rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.values) / self.sampling_rate

    def __attrs_post_init__(self) -> None:
        """Refuse what no encoder could take."""
        values, rate = self.values, self.sampling_rate
        if not isinstance(values, np.ndarray):
            raise SampleError(
                f"a waveform's `values` must be a numpy array, not {type(values).__name__}",
                hint="for a tensor, `tensor.numpy()`",
            )
        if values.dtype != np.float32:
            raise SampleError(
                f"a waveform's `values` must be floats, not {values.dtype}",
                hint="divide 16-bit samples by 32768",
            )
        if values.ndim != 1 or not len(values):
            raise SampleError(
                f"a waveform's `values` must be (samples,), at least one, not {values.shape}",
                hint="average the channels",
            )
        if type(rate) is not int or rate < 1:
            raise SampleError(f"`sampling_rate` must be a positive integer, not {rate!r}")


def read_audio(path: str | os.PathLike[str], sampling_rate: int | None = None) -> Waveform:
    """Read a sound file; its channels are averaged.

    Args:
        path: a file of any format that libsndfile reads, such as WAV, FLAC, OGG or MP3.
        sampling_rate: what to resample to, in hertz; None keeps the file's own rate.

    Raises:
        DataError: the file is missing, empty or unreadable, or an extra is not installed.
    """
    soundfile = _extra("soundfile")
    if not Path(path).is_file():
        raise DataError(f"the sound file `{path}` does not exist")
    try:
        channels, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"the sound file `{path}` cannot be read: {error}",
            hint="convert it to WAV or FLAC",
        ) from error
    if not len(channels):
        raise DataError(f"the sound file `{path}` holds no samples")
    waveform = Waveform(channels.mean(axis=1), rate)  # (samples, channels) -> (samples,)
    return waveform if sampling_rate is None else resample(waveform, sampling_rate)


def resample(waveform: Waveform, rate: int) -> Waveform:
    """The same sound with ``rate`` samples a second.

    Raises:
        DataError: the extra that resamples is not installed.
        SampleError: the sound is too short to have one sample at that rate.
    """
    if rate == waveform.sampling_rate:
        return waveform
    return Waveform(_extra("soxr").resample(waveform.values, waveform.sampling_rate, rate), rate)


def _extra(name: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without its native library
        raise DataError(
            f"sound needs `{name}`, which cannot be imported: {error}",
            hint="pip install 'safe-framework[audio]'",
        ) from error
