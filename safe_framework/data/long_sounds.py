"""Recordings that are read as they are needed, piece by piece, and never have to be held whole."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from safe_framework.data.audio import StreamResampler, Waveform, mono, read_audio
from safe_framework.data.audio_files import decode_blocks, length_of
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames

Mono = NDArray[np.float32]
"""Amplitudes of one channel, (samples,)."""

_READ = 1 << 20  # bytes of a file that are hashed at a time


class LongSound(ABC):
    """A recording that knows how to read itself.

    Attributes:
        sampling_rate: samples a second that it gives, in hertz.
        seconds: how long it lasts, as far as its header says.
    """

    sampling_rate: int
    seconds: float

    @abstractmethod
    def blocks(self) -> Iterator[Mono]:
        """Its sound from the beginning to the end, in pieces of any size.

        Raises:
            DataError: it cannot be read.
        """

    @property
    @abstractmethod
    def key(self) -> str:
        """SHA-256 of all that its sound depends on."""

    @property
    def values(self) -> Mono:
        """All of it, (samples,), read anew."""
        return np.concatenate(list(self.blocks()))

    def pieces(self, size: int, hop: int, shortest: int = 1) -> Iterator[Waveform]:
        """Windows of ``size`` samples, every ``hop``; the last is as long as what is left.

        Args:
            size: samples of a window.
            hop: from one window's beginning to the next's, at most ``size``.
            shortest: samples of a last window that is left out if it has fewer.
        """
        held, given = np.zeros(0, np.float32), 0
        for block in self.blocks():
            held = np.concatenate([held, block])
            while len(held) > size:
                yield Waveform(held[:size].copy(), self.sampling_rate)
                held, given = held[hop:], given + 1
        if len(held) and (not given or len(held) >= shortest):
            yield Waveform(held, self.sampling_rate)


@attrs.frozen(eq=False)
class FileSound(LongSound):
    """The sound in a file.

    Attributes:
        path: of any format that ``read_audio`` reads.
        sampling_rate: what it is resampled to, in hertz.
        seconds: as the file's header says.
    """

    path: Path
    sampling_rate: int
    seconds: float

    def blocks(self) -> Iterator[Mono]:
        """As ``read_audio`` reads it, but that a block whose channels cancel is by itself."""
        resampler: StreamResampler | None = None
        for channels, rate in decode_blocks(self.path, f"the sound file `{self.path}`"):
            resampler = resampler or StreamResampler(rate, self.sampling_rate)
            values = resampler(mono(channels, f"the sound file `{self.path}`"))
            if len(values):
                yield values
        if resampler is not None and len(values := resampler.end()):
            yield values

    @property
    def key(self) -> str:
        """Of the file's bytes and the rate."""
        digest = hashlib.sha256(f"file|{self.sampling_rate}|".encode())
        with self.path.open("rb") as file:
            while block := file.read(_READ):
                digest.update(block)
        return digest.hexdigest()


@attrs.frozen(eq=False)
class JoinedSound(LongSound):
    """Short recordings, each placed at its time in a long one, which is silent between them.

    Attributes:
        parts: files, and the second at which each begins.
        sampling_rate: what they are resampled to, in hertz.
        seconds: of the whole; what is behind that is cut off.
    """

    parts: Sequence[tuple[Path, float]]
    sampling_rate: int
    seconds: float

    def blocks(self) -> Iterator[Mono]:
        """All of it at once; parts that overlap are added."""
        whole = np.zeros(round(self.seconds * self.sampling_rate), np.float32)
        for path, at in self.parts:
            room = whole[round(at * self.sampling_rate) :]
            sound = read_audio(path, self.sampling_rate).values[: len(room)]
            room[: len(sound)] += sound
        yield whole

    @property
    def key(self) -> str:
        """Of the files' bytes, their times, the length and the rate."""
        digest = hashlib.sha256(f"joined|{self.sampling_rate}|{self.seconds}".encode())
        for path, at in self.parts:
            digest.update(f"|{at}|{_content_key(path, path.stat().st_mtime_ns)}".encode())
        return digest.hexdigest()


@attrs.frozen(eq=False)
class HeardSound(LongSound):
    """The last of a running recording, as a ``Listener`` heard it.

    Attributes:
        sound: itself, which is encoded anew where it stands beside samples that are not heard so.
        encoder: whose frames these are.
        frames: of the sound, (1, frames, dim).
    """

    sound: Waveform
    encoder: Encoder
    frames: Frames
    sampling_rate: int = attrs.field(init=False)
    seconds: float = attrs.field(init=False)

    @sampling_rate.default
    def _sampling_rate(self) -> int:
        return self.sound.sampling_rate

    @seconds.default
    def _seconds(self) -> float:
        return self.sound.seconds

    def blocks(self) -> Iterator[Mono]:
        """All of it at once."""
        yield self.sound.values

    @property
    def key(self) -> str:
        """Of its amplitudes and the rate."""
        digest = hashlib.sha256(f"heard|{self.sampling_rate}|".encode())
        digest.update(self.sound.values.tobytes())
        return digest.hexdigest()


@lru_cache(maxsize=4096)
def _content_key(path: Path, written: int) -> str:
    """SHA-256 of a file's bytes, which stand in many joined sounds."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def loaded(sample: Sample) -> Sample:
    """A sample with all its values at hand: a long sound is read whole, others stay themselves."""
    if isinstance(sample, LongSound):
        return Waveform(sample.values, sample.sampling_rate)
    return sample


def long_sound(path: Path, sampling_rate: int, longer_than: float) -> FileSound | None:
    """A file's sound, to be read as it is needed; None where reading it whole is as good.

    That is where it lasts no more than ``longer_than`` seconds, or does not say how long.
    """
    seconds = length_of(path)
    if seconds is None or seconds <= longer_than:
        return None
    return FileSound(path, sampling_rate, seconds)
