"""The interface of what turns raw samples of a modality into frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import attrs
import torch
from numpy.random import Generator
from torch import Tensor, nn

from safe_framework.interfaces.given_options import keep_given
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames
from safe_framework.interfaces.windows import Window, Windows


class Encoder(nn.Module, ABC):
    """Turns samples of one modality into frames; frozen unless it says otherwise.

    Attributes:
        dim: width of the frames it gives.
        sampling_rate: samples a second that it takes, in hertz; None where the modality is
            not a sampled signal. With a rate, samples that are read come as
            ``safe_framework.data.audio.Waveform``, mono, float32 and resampled to it; without one,
            as the array that a file holds.
        windows: how what is longer than ``whole_window`` is cut; None where it is not.

    Laws:
        deterministic: the same sample gives the same frames.
        row_independent: a sample's valid frames depend on nothing else in the batch.
        prepare_on_cpu: ``prepare`` gives CPU tensors that pickle, one row for each sample.
        frames_shape: ``forward`` gives (batch, frames, dim) with a mask (batch, frames).
        window_frames: of as many steps as ``whole_window`` says it gives as many frames as that
            says, and of no sample more.
    """

    dim: int
    sampling_rate: int | None = None
    windows: Windows | None = None

    def __new__(cls, *wired: Any, **options: Any) -> Self:
        """A plugin that knows the options it is made with."""
        return keep_given(super().__new__(cls), options)

    @abstractmethod
    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Turn raw samples into tensors that ``forward`` takes, padded to one length.

        Args:
            samples: at least one sample; None and absent ones never come here.

        Returns:
            CPU tensors whose first axis is the samples.

        Raises:
            SampleError: a sample cannot be used; the message names its place and the fix.
        """

    def augment(self, sample: Sample, generator: Generator) -> Sample:
        """A training sample as it might have been recorded otherwise; the sample itself here.

        It is called where the recipe gives the modality an ``augment`` table, after what that
        table says, and never with a held-out sample.

        Args:
            sample: as ``prepare`` takes it; not to be changed in place.
            generator: of everything random, so that a variant comes out the same again.

        Returns:
            Another sample of the same kind.
        """
        return sample

    def whole_window(self) -> Window | None:
        """The most that it takes at once; None, as here, where samples cannot be cut."""
        return None

    def cut(self, sample: Sample, start: int, stop: int) -> Sample:
        """Steps ``start`` to ``stop`` of a sample, along the first axis of its array."""
        if attrs.has(type(sample)):
            return attrs.evolve(sample, values=sample.values[start:stop])
        return sample[start:stop]

    def cut_into_windows(self, *, hop: float | None = None, longest: float = 600.0) -> Self:
        """From now on, take samples longer than one window: each window is encoded by itself.

        Args:
            hop: from the beginning of one window to that of the next, in seconds, or in steps of
                what has no clock, as pictures; None for windows that do not overlap.
            longest: what a sample may last, in the same.

        Raises:
            ValueError: the encoder has no window, or an argument is out of its range.
        """
        window = self.whole_window()
        if window is None:
            raise ValueError(
                f"`windows` cannot be: a {type(self).__name__} does not say what it takes at once"
            )
        self.windows = Windows.of(window, hop, longest)
        return self

    @abstractmethod
    def forward(self, **inputs: Tensor) -> Frames:
        """Encode what ``prepare`` gave, on whatever device it has been moved to."""


class Transcriber(ABC):
    """Writes down what is said in samples.

    Laws:
        one_text_each: each sample has one text, which may be empty.
        alone: a sample's text depends on nothing else in the batch.
        deterministic: the same sample has the same text.
    """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What tells it from every transcriber that could write something else: weights, options.

        A transcript that is kept is kept under it.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Transcriber:
        """Move what it computes with to a device."""

    @abstractmethod
    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        """The words of each sample.

        Args:
            samples: as the encoder's ``prepare`` takes them.

        Raises:
            SampleError: a sample cannot be used.
        """


class TranscribingEncoder(Encoder):
    """An encoder whose model can also write down what is said in a sample.

    By this a recipe may ask for ``transcript = true``.
    """

    @abstractmethod
    def transcriber(self, *, language: str | None = None, timestamps: bool = False) -> Transcriber:
        """What writes transcripts, on the device on which the encoder is.

        Args:
            language: what is spoken; None lets the model find out.
            timestamps: write when each phrase begins and ends, too.

        Raises:
            ValueError: the model cannot be told a language, or knows no such one, or no times;
                the message names the argument.
        """
