"""What can be wrong with one sample."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from safe_framework.data.addresses import InlineSample
from safe_framework.data.audio import Waveform, resample
from safe_framework.data.long_sounds import FileSound, LongSound, Mono
from safe_framework.data.pictures import Look, Picture, look
from safe_framework.data.samples import open_sound, read_sample
from safe_framework.data.windows import try_sample
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample

_QUIET = 1e-4  # -80 dB of full scale: inaudible, and 16 bits hardly hold it
_FULL = 0.999  # of full scale
_CLIPPED = 1e-3  # part of a recording's samples at full scale
_HELD = 60.0
"""Seconds of a recording that are held at once; of a longer one, only what is being looked at."""


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


@attrs.frozen
class Levels:
    """What is seen of a sound from its beginning to its end.

    Attributes:
        count: samples.
        bad: of them, how many are NaN or infinite.
        loudest: amplitude.
        full: samples at full scale.
        digest: SHA-256 of them all.
    """

    count: int
    bad: int
    loudest: float
    full: int
    digest: str

    @classmethod
    def of(cls, blocks: Iterable[Mono]) -> Self:
        """Of a sound that comes in pieces."""
        count = bad = full = 0
        loudest, digest = 0.0, hashlib.sha256()
        for block in blocks:
            loud = np.abs(block)
            count += len(block)
            bad += int((~np.isfinite(block)).sum())
            loudest = max(loudest, float(loud.max(initial=0.0)))
            full += int((loud >= _FULL).sum())
            digest.update(np.ascontiguousarray(block).tobytes())
        return cls(count, bad, loudest, full, digest.hexdigest())


@attrs.frozen(eq=False)
class CheckedSound(LongSound):
    """A long recording in a file that could be read to its end.

    Attributes:
        sound: itself, at the file's own rate.
        levels: of all of it.
    """

    sound: FileSound
    levels: Levels
    sampling_rate: int = attrs.field(init=False)
    seconds: float = attrs.field(init=False)

    @sampling_rate.default
    def _sampling_rate(self) -> int:
        return self.sound.sampling_rate

    @seconds.default
    def _seconds(self) -> float:
        return self.levels.count / self.sound.sampling_rate

    def blocks(self) -> Iterator[Mono]:
        """As the file has it."""
        return self.sound.blocks()

    def at(self, rate: int) -> FileSound:
        """The same sound with so many samples a second."""
        return attrs.evolve(self.sound, sampling_rate=rate, seconds=self.seconds)

    @property
    def key(self) -> str:
        """Of its amplitudes, however they are stored, and its rate."""
        return hashlib.sha256(f"{self.sampling_rate}|{self.levels.digest}".encode()).hexdigest()


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
            sound = open_sound(source, _HELD)
            if isinstance(sound, FileSound):
                return CheckedSound(sound, Levels.of(sound.blocks())), []
            return sound, []
        return read_sample(source, None, ""), []
    except SafeError as error:
        message = error.message.removeprefix(": ")
        return None, [SampleProblem("unreadable-file", message, error.hint or "make the file anew")]


def sample_problems(sample: Sample, expected: SampleRequirements) -> list[SampleProblem]:
    """Everything that is wrong with a sample that could be read."""
    if isinstance(sample, CheckedSound):
        return _whole_sound(sample, sample.levels, expected)
    if isinstance(sample, Waveform):
        return _whole_sound(sample, Levels.of([sample.values]), expected)
    values = np.asarray(sample)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        message = f"its array holds no numbers, but {values.dtype}"
        return [SampleProblem("unreadable-file", message, "make the file anew")]
    if bad := int((~np.isfinite(values)).sum()):
        return [_not_finite(bad, values.size)]
    return [*_array(values), *_refused(sample, expected)]


def _whole_sound(
    sample: Waveform | CheckedSound, levels: Levels, expected: SampleRequirements
) -> list[SampleProblem]:
    if levels.bad:
        return [_not_finite(levels.bad, levels.count)]
    return [*_sound(sample, levels, expected), *_refused(sample, expected)]


def _not_finite(bad: int, size: int) -> SampleProblem:
    message = f"{bad} of its {size} numbers are NaN or infinite"
    return SampleProblem("not-finite", message, "repair the recording, or leave the row out")


def _sound(
    sample: Waveform | CheckedSound, levels: Levels, expected: SampleRequirements
) -> Iterator[SampleProblem]:
    full = levels.full / levels.count
    if levels.loudest < _QUIET:
        yield SampleProblem(
            "silence",
            f"it is silent: its peak is {levels.loudest:.1g}",
            "check how it was recorded",
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
        if encoder.sampling_rate is not None:
            if isinstance(sample, Waveform):
                sample = resample(sample, encoder.sampling_rate)
            elif isinstance(sample, CheckedSound):
                sample = sample.at(encoder.sampling_rate)
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
