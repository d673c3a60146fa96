"""Sound: a mono waveform that knows its rate, and reading one from a file."""

from __future__ import annotations

import operator
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import numpy as np
import numpy.typing as npt

from safe_framework.data.audio_files import decode
from safe_framework.data.unread import missing_file
from safe_framework.errors import DataError, SampleError
from safe_framework.utils.optional_imports import load_torchaudio, require

if TYPE_CHECKING:
    from types import ModuleType

    from safe_framework.interfaces.samples import Sample


def _float32(values: Any) -> Any:
    """Floats of any width as float32; samples of signed integers by their full scale."""
    if not isinstance(values, np.ndarray):
        return values
    if np.issubdtype(values.dtype, np.floating):
        return np.ascontiguousarray(values, dtype=np.float32)
    if values.dtype.newbyteorder("=") in _PCM:
        return (values / -float(np.iinfo(values.dtype).min)).astype(np.float32)
    return values


def _whole_number(value: Any) -> Any:
    """A whole number of NumPy's or torch's, also in an array of one, as one of Python's."""
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


_LOUDEST = 100.0
"""Of floats that are nominally from -1 to 1: what is far beyond any headroom."""

_PCM = (np.int16, np.int32)
"""What sound cards and readers of WAV files give. Whole numbers of other widths do not say what
their full scale is."""


@attrs.frozen(eq=False)
class Waveform:
    """A mono recording.

    Attributes:
        values: amplitudes, nominally from -1 to 1, (samples,); 16- and 32-bit integers are
            divided by 2**15 and 2**31.
        sampling_rate: samples a second, in hertz.

    Raises:
        SampleError: the values are not one channel of floats or such integers, or the rate is not
            positive.

    >>> Waveform(np.zeros(8000), 16000).seconds
    0.5
    """

    values: Annotated[npt.NDArray[np.float32], "samples"] = attrs.field(converter=_float32)
    sampling_rate: int = attrs.field(converter=_whole_number)

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
                f"a waveform's `values` must be floats, int16 or int32, not {values.dtype}",
                hint="divide samples by their full scale, as 8388608 of 24 bits",
            )
        if values.ndim != 1 or not len(values):
            raise SampleError(
                f"a waveform's `values` must be (samples,), at least one, not {values.shape}",
                hint="average the channels",
            )
        if type(rate) is not int or rate < 1:
            raise SampleError(f"`sampling_rate` must be a positive integer, not {rate!r}")


def check_waveform(sample: Sample, name: str, encoder: str, rate: int) -> Waveform:
    """Refuse what an encoder of waveforms cannot take.

    Args:
        sample: what it was given.
        name: of the sample in messages, such as ``"`samples[0]`"``.
        encoder: the encoder's name in messages.
        rate: samples a second that the encoder takes, in hertz.

    Returns:
        The sample itself.

    Raises:
        SampleError: it is no ``Waveform``, has another rate, or holds NaN or Inf.
    """
    if not isinstance(sample, Waveform):
        raise SampleError(
            f"{name} is a {type(sample).__name__}, which does not say its rate",
            hint="wrap it: safe_framework.data.audio.Waveform(values, sampling_rate)",
        )
    if sample.sampling_rate != rate:
        raise SampleError(
            f"{name} is sampled at {sample.sampling_rate} Hz, `{encoder}` takes {rate} Hz",
            hint=f"safe_framework.data.audio.resample(waveform, {rate})",
        )
    if not np.isfinite(sample.values).all():
        raise SampleError(f"{name} holds NaN or Inf", hint="drop or repair the recording")
    loudest = float(np.abs(sample.values).max())
    if loudest > _LOUDEST:
        warnings.warn(
            f"{name} has amplitudes up to {loudest:.0f}, as whole numbers that became floats: "
            "divide them by their full scale, as 32768 of 16 bits",
            stacklevel=2,
        )
    return sample


def read_audio(
    path: str | os.PathLike[str] | bytes,
    sampling_rate: int | None = None,
    *,
    longest: float | None = None,
) -> Waveform:
    """Read a sound file; its channels are averaged, as :func:`mono` does.

    Args:
        path: a file of any format that libsndfile reads, such as WAV, FLAC, OGG or MP3, or, where
            PyAV is installed, of any other with sound, such as M4A, WebM or MP4; or the content of
            one.
        sampling_rate: what to resample to, in hertz; None keeps the file's own rate.
        longest: seconds that it may last, beyond which nothing is decoded; None for any number.

    Raises:
        DataError: the file is missing, empty, truncated or unreadable, or an extra is not
            installed.
    """
    called = "the sound in the row" if isinstance(path, bytes) else f"the sound file `{path}`"
    if not isinstance(path, bytes) and not os.path.isfile(path):
        raise missing_file(path, called)
    try:
        content = path if isinstance(path, bytes) else Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{called} cannot be read: {error}") from error
    channels, rate = decode(content, called, longest)
    waveform = Waveform(mono(channels, called), rate)
    return waveform if sampling_rate is None else resample(waveform, sampling_rate)


def mono(channels: npt.NDArray[np.float32], called: str) -> npt.NDArray[np.float32]:
    """The mean of the channels, or the loudest where they cancel each other.

    Channels cancel where the mean has less than a thousandth of their mean power, as those do
    that are each other's negative; a warning says so.

    Args:
        channels: amplitudes, (samples, channels).
        called: what the warning calls the sound.
    """
    mean: npt.NDArray[np.float32] = channels.mean(axis=1)  # (samples, channels) -> (samples,)
    power = np.square(channels, dtype=np.float64).mean(axis=0)
    if channels.shape[1] == 1 or np.square(mean, dtype=np.float64).mean() >= power.mean() / 1000:
        return mean
    if power.max() > 0:
        warnings.warn(
            f"the channels of {called} are opposite in phase and cancel each other: "
            f"channel {int(power.argmax()) + 1} alone is read",
            stacklevel=3,
        )
    return np.ascontiguousarray(channels[:, int(power.argmax())])


def resample(waveform: Waveform, rate: int) -> Waveform:
    """The same sound with ``rate`` samples a second.

    By torchaudio where it can be imported, otherwise by soxr. Below nine tenths of the lower
    rate's half, the two differ by less than -60 dB of the sound.

    Raises:
        DataError: neither can be imported.
        SampleError: the sound is too short to have one sample at that rate.
    """
    if rate == waveform.sampling_rate:
        return waveform
    try:
        torchaudio = load_torchaudio()
    except ImportError:
        soxr = require("soxr", "audio", "sound needs `soxr`")
        values = soxr.resample(waveform.values, waveform.sampling_rate, rate)
    else:
        values = _by_torchaudio(torchaudio, waveform, rate)
    return Waveform(values, rate)


class StreamResampler:
    """Brings a sound that comes in pieces to another rate, by soxr.

    However the sound is cut, the same bits come out. They come some hundredths of a second late:
    ``end`` gives the rest.

    Args:
        given: samples a second of what comes in, in hertz.
        wanted: of what comes out; what comes in, where it is the same.

    Raises:
        DataError: soxr is not installed.
    """

    def __init__(self, given: int, wanted: int) -> None:
        self._stream: Any = None
        if given != wanted:
            soxr = require("soxr", "audio", "sound needs `soxr`")
            self._stream = soxr.ResampleStream(given, wanted, 1)

    def __call__(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What is known of the sound by now, beyond what was given before.

        Args:
            values: the next amplitudes, (samples,).
        """
        if self._stream is None:
            return values
        found: npt.NDArray[np.float32] = self._stream.resample_chunk(values)
        return found

    def end(self) -> npt.NDArray[np.float32]:
        """The rest of the sound, of which nothing may follow."""
        nothing = np.zeros(0, np.float32)
        if self._stream is None:
            return nothing
        found: npt.NDArray[np.float32] = self._stream.resample_chunk(nothing, last=True)
        return found


def _by_torchaudio(torchaudio: ModuleType, waveform: Waveform, rate: int) -> Any:
    import torch

    resampled = torchaudio.functional.resample(
        torch.tensor(waveform.values),
        waveform.sampling_rate,
        rate,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=64,  # as steep as soxr's filter: its default is 18 dB away from it
        rolloff=0.97,
        beta=14.77,
    )
    own = waveform.sampling_rate
    length = (2 * len(waveform.values) * rate + own) // (2 * own)  # as soxr rounds it
    return resampled[:length].numpy()
