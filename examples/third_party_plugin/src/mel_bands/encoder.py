"""Mel-band energies, a description of sound that needs no weights.

``frame = log(filters |STFT(wave)|^2 + 1e-6)``, where the filters are triangles that stand at equal
distances on the mel scale, ``mel(f) = 2595 log10(1 + f / 700)`` (O'Shaughnessy 1987).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from safe_framework import Encoder, Frames
from safe_framework.data.audio import Waveform
from safe_framework.errors import SampleError

_FLOOR = 1e-6


class MelBandsEncoder(Encoder):
    """Log energy of sound in mel bands, for as many frames as a recording lasts.

    Args:
        bands: width of a frame.
        sampling_rate: of the recordings that it takes, in hertz.
        window: of one frame, in seconds.
        hop: from one frame to the next, in seconds.
    """

    filters: Tensor
    taper: Tensor

    def __init__(
        self,
        *,
        bands: int = 40,
        sampling_rate: int = 16_000,
        window: float = 0.064,
        hop: float = 0.02,
    ) -> None:
        super().__init__()
        if sampling_rate < 1:
            raise ValueError(f"`sampling_rate` must be at least 1, not {sampling_rate}")
        self._size, self._hop = round(window * sampling_rate), round(hop * sampling_rate)
        if self._size < 2:
            raise ValueError(f"`window` must be at least {2 / sampling_rate}, not {window}")
        if not 1 <= self._hop <= self._size:
            raise ValueError(f"`hop` must be from {1 / sampling_rate} to {window}, not {hop}")
        if bands < 1:
            raise ValueError(f"`bands` must be at least 1, not {bands}")
        self.dim, self.sampling_rate = bands, sampling_rate
        self.register_buffer("filters", _triangles(bands, self._size, sampling_rate))
        self.register_buffer("taper", torch.hann_window(self._size))
        if not self.filters.any(0).all():
            raise ValueError(
                f"`bands` must be fewer than {bands}, or `window` longer: one is empty"
            )

    def prepare(self, samples: Sequence[Waveform]) -> Mapping[str, Tensor]:
        """``waves`` (batch, samples), filled up with silence, and ``lengths`` in frames."""
        for index, sample in enumerate(samples):
            self._check(sample, f"`samples[{index}]`")
        lengths = [-(-len(sample.values) // self._hop) for sample in samples]
        waves = torch.zeros(len(samples), (max(lengths) - 1) * self._hop + self._size)
        for row, sample in enumerate(samples):
            waves[row, : len(sample.values)] = torch.from_numpy(sample.values)
        return {"waves": waves, "lengths": torch.tensor(lengths)}

    def forward(self, **inputs: Tensor) -> Frames:
        """Energies, (batch, samples) -> (batch, frames, bands)."""
        windows = inputs["waves"].unfold(1, self._size, self._hop)  # (batch, frames, size)
        power = torch.fft.rfft(windows * self.taper).abs().square() / self._size
        values = torch.log(power @ self.filters + _FLOOR)  # (batch, frames, bands)
        positions = torch.arange(values.shape[1], device=values.device)
        return Frames(values, positions < inputs["lengths"][:, None])

    def _check(self, sample: Waveform, name: str) -> None:
        if not isinstance(sample, Waveform):
            raise SampleError(
                f"{name} is a {type(sample).__name__}, which does not say its rate",
                hint="wrap it: safe_framework.data.audio.Waveform(values, sampling_rate)",
            )
        if sample.sampling_rate != self.sampling_rate:
            raise SampleError(
                f"{name} is sampled at {sample.sampling_rate} Hz, not {self.sampling_rate} Hz",
                hint=f"safe_framework.data.audio.resample(waveform, {self.sampling_rate})",
            )
        if not np.isfinite(sample.values).all():
            raise SampleError(f"{name} holds NaN or Inf", hint="drop or repair the recording")


def _triangles(bands: int, size: int, rate: int) -> Tensor:
    """What each frequency of a transform counts in each band, (frequencies, bands)."""
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, bands + 2) / 2595) - 1)  # in hertz
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    frequencies = np.fft.rfftfreq(size, 1 / rate)[:, None]  # (frequencies, 1)
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    return torch.from_numpy(np.clip(np.minimum(rising, falling), 0, 1)).float()
