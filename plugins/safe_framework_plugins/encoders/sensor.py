"""Patches of a multichannel time series: touch, inertial units, or any other sensor.

Nie et al. 2023, A Time Series is Worth 64 Words (arXiv:2211.14730), for patches of normalised
windows; Kim et al. 2022, Reversible Instance Normalization, for normalising each window alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from safe_framework.data.audio import Waveform
from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames
from safe_framework.interfaces.windows import Window
from safe_framework.utils.positions import sinusoidal_positions

_FLAT = 1e-6  # deviations below which a channel is taken as constant


@attrs.frozen(eq=False)
class Recording:
    """A multichannel time series that knows its rate.

    Attributes:
        values: readings, (steps, channels); NaN where one is missing.
        sampling_rate: readings a second, in hertz.
    """

    values: Annotated[npt.NDArray[Any], "steps channels"]
    sampling_rate: float


class SensorEncoder(Encoder):
    """One frame for each patch of a recording, by an embedding that is trained.

    ``frame = embed([(x - mean) / deviation; is_there]) + wave(place)``, over the readings x of
    a patch, with the mean and deviation of each channel over the sample.

    Args:
        channels: how many the recordings have.
        rate: readings a second, in hertz; an array that does not say its own has this one.
        patch: readings of one frame.
        window: the longest recording, in seconds.
        dim: width of the frames.
        embedding: ``"linear"`` for one map of a patch, ``"conv"`` for a convolution over 5
            readings, a GELU, and a map of a patch.
        normalise: take each channel's mean and deviation out; its level and scale are lost.
        gaps: what to do about NaN: ``"refuse"`` it, or ``"mask"`` the reading, and a frame
            that has no other.
        trainable: train the embedding; otherwise it stays random.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        *,
        channels: int,
        rate: float,
        patch: int = 16,
        window: float = 10.0,
        dim: int = 128,
        embedding: Literal["linear", "conv"] = "linear",
        normalise: bool = True,
        gaps: Literal["refuse", "mask"] = "refuse",
        trainable: bool = True,
    ) -> None:
        super().__init__()
        for name, value in {"channels": channels, "patch": patch, "dim": dim}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, not {value}")
        if not 0 < rate < math.inf:
            raise ValueError(f"`rate` must be above 0 and finite, not {rate}")
        if not 1 / rate <= window < math.inf:
            raise ValueError(f"`window` must be at least {1 / rate} and finite, not {window}")
        self.channels, self.rate, self.patch, self.dim = channels, rate, patch, dim
        self.window, self.normalise, self.gaps = window, normalise, gaps
        self.embed = _embedding(embedding, 2 * channels, patch, dim)
        self.requires_grad_(trainable)

    def whole_window(self) -> Window:
        """``window`` seconds at ``rate``."""
        steps = round(self.window * self.rate)
        return Window(steps, math.ceil(steps / self.patch), self.rate)

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Readings, normalised and padded to whole patches.

        Args:
            samples: arrays (steps, channels), or ``Recording``s; for one channel also
                ``Waveform``s.

        Returns:
            ``readings`` (batch, steps, channels) and ``there`` of the same shape, False where
            a reading is missing or padding.

        Raises:
            SampleError: a sample has another shape, rate or type, is longer than the window,
                or holds NaN that is not allowed, or Inf.
        """
        checked = [self._checked(sample, f"`samples[{i}]`") for i, sample in enumerate(samples)]
        longest = max(len(values) for values in checked)
        steps = math.ceil(longest / self.patch) * self.patch
        readings = torch.zeros(len(checked), steps, self.channels)
        there = torch.zeros(len(checked), steps, self.channels, dtype=torch.bool)
        for row, values in enumerate(checked):
            known = np.isfinite(values)
            level = _normalised(values, known) if self.normalise else values
            readings[row, : len(values)] = torch.from_numpy(np.where(known, level, 0.0)).float()
            there[row, : len(values)] = torch.from_numpy(known)
        return {"readings": readings, "there": there}

    def forward(self, **inputs: Tensor) -> Frames:
        """Encode readings, (batch, steps, channels) -> (batch, frames, dim)."""
        there = inputs["there"]
        weight = next(self.parameters())
        both = torch.cat([inputs["readings"], there], dim=-1).to(weight.dtype)
        values = self.embed(both.transpose(1, 2)).transpose(1, 2)  # (batch, frames, dim)
        patches = there.reshape(*values.shape[:2], -1)  # (batch, frames, patch * channels)
        mask = patches.any(dim=-1)
        return Frames(values + sinusoidal_positions(values), mask)

    def _checked(self, sample: Sample, name: str) -> npt.NDArray[np.float64]:
        rate = getattr(sample, "sampling_rate", self.rate)
        values = _array(sample, name)
        if rate != self.rate:
            raise SampleError(
                f"{name} is sampled at {rate} Hz, `sensor` takes {self.rate} Hz",
                hint="resample the recording, or set `rate`",
            )
        if values.ndim != 2 or values.shape[1] != self.channels or not len(values):
            raise SampleError(
                f"{name} has shape {values.shape}, `sensor` takes (steps, {self.channels})",
                hint="one row for each time step, one column for each channel",
            )
        self._check_values(values, name)
        if len(values) > round(self.window * self.rate):
            raise SampleError(
                f"{name} lasts {len(values) / self.rate:.2f} s, longer than the window of"
                f" {self.window} s",
                hint=f"`window = {math.ceil(len(values) / self.rate)}`, or cut the recording",
            )
        return values

    def _check_values(self, values: npt.NDArray[np.float64], name: str) -> None:
        if np.isinf(values).any():
            raise SampleError(f"{name} holds Inf", hint="repair it, or write NaN for a gap")
        missing = np.isnan(values)
        if missing.any() and self.gaps == "refuse":
            step, channel = np.argwhere(missing)[0]
            raise SampleError(
                f"{name} holds NaN, first at step {step} of channel {channel}",
                hint='repair the recording, or set `gaps = "mask"`',
            )
        if missing.all():
            raise SampleError(f"{name} holds no reading, only NaN", hint="leave the sample out")


def _array(sample: Sample, name: str) -> npt.NDArray[np.float64]:
    values = sample.values if isinstance(sample, (Recording, Waveform)) else sample
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        kind = f"array of {values.dtype}" if isinstance(values, np.ndarray) else type(values)
        raise SampleError(
            f"{name} is no array of numbers but {getattr(kind, '__name__', kind)}",
            hint="give a numpy array (steps, channels)",
        )
    exact: npt.NDArray[np.float64] = values.astype(np.float64)
    return exact[:, None] if isinstance(sample, Waveform) else exact


def _normalised(
    values: npt.NDArray[np.float64], known: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Each channel with mean 0 and deviation 1 over its known readings; 0 if constant."""
    count = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, values, 0.0)
    centred = np.where(known, filled - filled.sum(axis=0) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    flat = deviation <= _FLAT * np.maximum(np.abs(filled).max(axis=0), _FLAT)
    scaled: npt.NDArray[np.float64] = np.where(flat, 0.0, centred / np.where(flat, 1, deviation))
    return scaled


def _embedding(kind: str, inputs: int, patch: int, dim: int) -> nn.Module:
    if kind == "linear":
        return nn.Conv1d(inputs, dim, patch, stride=patch)  # a linear map of each patch
    local = nn.Conv1d(inputs, dim, 5, padding=2)
    return nn.Sequential(local, nn.GELU(), nn.Conv1d(dim, dim, patch, stride=patch))
