"""Samples of any length: each window of one is prepared by itself, as ``Encoder.windows`` says.

Where some sample of a batch has several windows, what was prepared has a second axis for them, and
``window_count`` says how many each has. Where none has, a batch is as it is without windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from safe_framework.data.long_sounds import LongSound, loaded
from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import WINDOW_COUNT
from safe_framework.interfaces.windows import Windows


def prepare_samples(encoder: Encoder, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
    """What an encoder prepares of samples, and of the windows of longer ones.

    Args:
        encoder: whose ``prepare`` and ``windows`` are asked.
        samples: at least one.

    Returns:
        Tensors (samples, ...); where a sample has several windows, (samples, windows, ...) with
        ``window_count`` (samples,).

    Raises:
        SampleError: a sample cannot be used, or is longer than ``windows`` allow.
    """
    if encoder.windows is None:
        return encoder.prepare([loaded(sample) for sample in samples])
    cut = [
        list(each_window(encoder, sample, f"`samples[{number}]`"))
        for number, sample in enumerate(samples)
    ]
    try:
        prepared = encoder.prepare([window for windows in cut for window in windows])
    except SampleError as error:
        raise _of_its_sample(encoder, cut) or error from error
    counts = torch.tensor([len(windows) for windows in cut])
    most = int(counts.max())
    if most == 1:
        return prepared
    real = torch.arange(most) < counts[:, None]  # (samples, windows)
    in_rows = {key: in_slots(value, real) for key, value in prepared.items()}
    return {**in_rows, WINDOW_COUNT: counts}


def try_sample(encoder: Encoder, sample: Sample) -> None:
    """Let an encoder look at a sample, window by window; nothing is kept.

    Raises:
        SampleError: it cannot be used.
    """
    for window in each_window(encoder, sample, "`samples[0]`"):
        encoder.prepare([window])


def each_window(encoder: Encoder, sample: Sample, name: str) -> Iterator[Sample]:
    """The windows of a sample, one after another; the sample itself where it fits into one.

    Args:
        encoder: whose ``windows`` they are.
        sample: of any length.
        name: of the sample in messages.

    Raises:
        SampleError: it is longer than ``windows`` allow.
    """
    windows = encoder.windows
    if windows is None or not is_long(sample, windows):
        yield loaded(sample)
        return
    size, steps = windows.window.steps, _steps(sample)
    if steps > windows.longest:
        raise _too_long(windows, steps, name)
    if not isinstance(sample, LongSound):
        for start in windows.starts(steps):
            yield encoder.cut(sample, start, min(start + size, steps))
        return
    for number, window in enumerate(sample.pieces(size, windows.hop, windows.window.shortest)):
        if number == windows.most:  # its header said less
            raise _too_long(windows, steps, name)
        yield window


def is_long(sample: Sample, windows: Windows) -> bool:
    """Whether a sample is longer than one window."""
    return _steps(sample) > windows.window.steps


def _steps(sample: Sample) -> int:
    if isinstance(sample, LongSound):
        return round(sample.seconds * sample.sampling_rate)
    values = sample.values if attrs.has(type(sample)) else sample
    shape = getattr(values, "shape", ())
    return int(shape[0]) if shape else 0


def _too_long(windows: Windows, steps: int, name: str) -> SampleError:
    window = windows.window
    longest = steps if window.rate is None else -(-steps // round(window.rate))
    return SampleError(
        f"{name} lasts {window.said(steps)}, longer than the {window.said(windows.longest)} that"
        " `longest` of its `windows` allows",
        hint=f"`windows = {{ longest = {longest} }}`, or cut the recording",
    )


def _of_its_sample(encoder: Encoder, cut: Sequence[Sequence[Sample]]) -> SampleError | None:
    """What is wrong with the first window that is wrong by itself, under its sample's name."""
    for number, windows in enumerate(cut):
        for window in windows:
            try:
                encoder.prepare([window])
            except SampleError as error:
                message = error.message.replace("samples[0]", f"samples[{number}]")
                return SampleError(message, hint=error.hint)
    return None


def in_slots(values: Tensor, present: Tensor) -> Tensor:
    """``values`` (samples, ...) where ``present`` is True, in its order, and zeros elsewhere."""
    rows = values.new_zeros(*present.shape, *values.shape[1:])
    rows[present] = values
    return rows
