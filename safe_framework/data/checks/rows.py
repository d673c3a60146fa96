"""What can be wrong with one sample."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from safe_framework.data.addresses import InlineSample
from safe_framework.data.audio import Waveform, resample
from safe_framework.data.pictures import Look, Picture, look
from safe_framework.data.samples import read_sample, read_sound
from safe_framework.data.windows import try_sample
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample

_QUIET = 1e-4  # -80 dB of full scale: inaudible, and 16 bits hardly hold it
_FULL = 0.999  # of full scale
_CLIPPED = 1e-3  # part of a recording's samples at full scale


class SampleProblem(NamedTuple):
    """One thing that is wrong with a sample: its kind, what is wrong, what to do."""

    kind: str
    message: str
    hint: str


@attrs.frozen
class SampleRequirements:
    """What the samples of a modality should be.

    Attributes:
        encoder: whose they are; None where it is not known.
        sound: whether they are recordings.
        longest: seconds above which a recording is long.
        rate: that recordings should have at least, in hertz; None if any will do.
    """

    encoder: Encoder | None
    sound: bool
    longest: float
    rate: int | None = None


def open_sample(
    source: Path | InlineSample, expected: SampleRequirements
) -> tuple[Sample | None, list[SampleProblem]]:
    """The sample as it is on disk, at its own rate, or why it cannot be read."""
    if isinstance(source, Path) and not os.path.isfile(source):
        return None, [
            SampleProblem("missing-file", f"there is no file `{source}`", "correct its name")
        ]
    try:
        if expected.sound:
            return read_sound(source), []
        return read_sample(source, None, ""), []
    except SafeError as error:
        message = error.message.removeprefix(": ")
        return None, [SampleProblem("unreadable-file", message, error.hint or "make the file anew")]


def sample_problems(sample: Sample, expected: SampleRequirements) -> list[SampleProblem]:
    """Everything that is wrong with a sample that could be read."""
    values = sample.values if isinstance(sample, Waveform) else np.asarray(sample)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        message = f"its array holds no numbers, but {values.dtype}"
        return [SampleProblem("unreadable-file", message, "make the file anew")]
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        message = f"{count} of its {values.size} numbers are NaN or infinite"
        return [SampleProblem("not-finite", message, "repair the recording, or leave the row out")]
    found = list(_sound(sample, expected)) if isinstance(sample, Waveform) else list(_array(values))
    return [*found, *_refused(sample, expected)]


def _sound(sample: Waveform, expected: SampleRequirements) -> Iterator[SampleProblem]:
    loudest = float(np.abs(sample.values).max())
    full = float((np.abs(sample.values) >= _FULL).mean())
    if loudest < _QUIET:
        yield SampleProblem(
            "silence", f"it is silent: its peak is {loudest:.1g}", "check how it was recorded"
        )
    if full > _CLIPPED:
        yield SampleProblem(
            "clipped",
            f"{full:.1%} of it is at full scale",
            "record it at a lower level, or convert it without gain",
        )
    if sample.seconds > expected.longest:
        yield SampleProblem(
            "too-long",
            f"it lasts {sample.seconds:.1f} s, more than {expected.longest:g} s",
            "cut it into shorter ones, or allow more with --longest",
        )
    rate = expected.rate
    if rate is not None and sample.sampling_rate < rate:
        yield SampleProblem(
            "wrong-rate",
            f"it is sampled at {sample.sampling_rate} Hz, below the {rate} Hz that are wanted: it"
            f" holds nothing above {sample.sampling_rate // 2} Hz",
            f"use a recording of {rate} Hz or more",
        )


def _array(values: NDArray[Any]) -> Iterator[SampleProblem]:
    if not values.size:
        yield SampleProblem("unreadable-file", "its array is empty", "make the file anew")
    elif not values.any():
        yield SampleProblem("silence", "all its numbers are 0", "check how it was recorded")


def _refused(sample: Sample, expected: SampleRequirements) -> Iterator[SampleProblem]:
    """What the encoder itself says, once the sample is at its rate."""
    encoder = expected.encoder
    if encoder is None:
        return
    try:
        if isinstance(sample, Waveform) and encoder.sampling_rate is not None:
            sample = resample(sample, encoder.sampling_rate)
        try_sample(encoder, sample)
    except SampleError as error:
        message = error.message.replace("`samples[0]`", "it").replace("samples[0]", "it")
        hint = error.hint or "leave the row out"
        yield SampleProblem("refused", f"its encoder refuses it: {message}", hint)


def picture_problems(picture: Picture, looks: Mapping[int, Look]) -> Iterator[SampleProblem]:
    """What is wrong with a picture.

    Args:
        picture: of a row.
        looks: what is known of some already, by their ``id``.
    """
    found = looks.get(id(picture)) or look(picture)
    if isinstance(found, SafeError):
        lost = isinstance(picture.source, Path) and not os.path.isfile(picture.source)
        yield SampleProblem(
            "missing-file" if lost else "unreadable-file", found.message, found.hint
        )
    elif found.frames > 1:
        yield SampleProblem(
            "several-frames",
            f"the picture `{picture.name}` has {found.frames} frames, of which the first is read",
            "save the one that is meant as PNG",
        )
