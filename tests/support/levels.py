"""A sense of sound that costs nothing, and a recording that libsndfile cannot read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames
from safe_framework.interfaces.windows import Window

RATE = 1000
"""Samples a second that it takes, in hertz."""


class LevelEncoder(Encoder):
    """The loudness of each tenth of a second of sound, of at most so many seconds."""

    dim, sampling_rate = 1, RATE

    def __init__(self, seconds: int = 1) -> None:
        super().__init__()
        self.seconds = seconds
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

    def whole_window(self) -> Window:
        return Window(self.seconds * RATE, self.seconds * 10, RATE)

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        longest = max(len(sample.values) for sample in samples)
        values = torch.zeros(len(samples), math.ceil(longest / 100) * 100)
        there = torch.zeros(values.shape, dtype=torch.bool)
        for row, sample in enumerate(samples):
            if len(sample.values) > self.seconds * RATE:
                raise SampleError(f"`samples[{row}]` is longer than {self.seconds} s")
            values[row, : len(sample.values)] = torch.from_numpy(sample.values)
            there[row, : len(sample.values)] = True
        return {"values": values, "there": there}

    def forward(self, **inputs: Tensor) -> Frames:
        tenths = inputs["values"].unflatten(1, (-1, 100)).square().mean(2, keepdim=True)
        return Frames(self.scale * tenths, inputs["there"].unflatten(1, (-1, 100)).any(2))


def write_m4a(path: Path, values: NDArray[Any], rate: int) -> None:
    """A mono recording as a phone makes one."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=rate, layout="mono")
        sound = np.asarray(values, np.float32)[None]
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            file.mux(packet)
