"""Samples of any length: each window of one is prepared by itself, as ``Encoder.windows`` says.

Where some sample of a batch has several windows, what was prepared has a second axis for them, and
``window_count`` says how many each has. Where none has, a batch is as it is without windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

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
    windows = encoder.windows
    if windows is None or not any(is_long(sample, windows) for sample in samples):
        return encoder.prepare([loaded(sample) for sample in samples])
    names = [f"samples[{number}]" for number in range(len(samples))]
    named = list(zip(samples, names, strict=True))
    cuts = [each_window(encoder, sample, f"`{name}`") for sample, name in named]
    firsts = [next(cut) for cut in cuts]
    longest = max(range(len(firsts)), key=lambda number: _steps(firsts[number]))
    whole = firsts[longest]
    _prepare_last(encoder, [whole], names[longest])  # what is wrong with it is no other's fault
    prepared = [
        [_prepare_last(encoder, _beside(whole, window), name) for window in chain([first], cut)]
        for first, cut, name in zip(firsts, cuts, names, strict=True)
    ]
    counts = torch.tensor([len(each) for each in prepared])
    most = int(counts.max())
    in_rows = {
        key: value.new_zeros(len(samples), most, *value.shape)
        for key, value in prepared[0][0].items()
    }
    for row, each in enumerate(prepared):
        for slot, window in enumerate(each):
            for key, value in window.items():
                in_rows[key][row, slot] = value
    if most == 1:
        return {key: value[:, 0] for key, value in in_rows.items()}
    return {**in_rows, WINDOW_COUNT: counts}


def _beside(whole: Sample, window: Sample) -> list[Sample]:
    """A window behind a whole one, to which it is padded; by itself if it is as long."""
    return [window] if _steps(window) == _steps(whole) else [whole, window]


def _prepare_last(encoder: Encoder, windows: Sequence[Sample], name: str) -> dict[str, Tensor]:
    """What an encoder prepares of the last of some windows, padded to the longest.

    Raises:
        SampleError: it cannot be used; the message names its sample.
    """
    last = len(windows) - 1
    try:
        prepared = encoder.prepare(windows)
    except SampleError as error:
        message = error.message.replace(f"samples[{last}]", name)
        raise SampleError(message, hint=error.hint) from error
    return {key: value[last].clone() for key, value in prepared.items()}


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


def in_slots(values: Tensor, present: Tensor) -> Tensor:
    """``values`` (samples, ...) where ``present`` is True, in its order, and zeros elsewhere."""
    rows = values.new_zeros(*present.shape, *values.shape[1:])
    rows[present] = values
    return rows
