"""aiSFX, a convolutional network that was trained to index libraries of sound effects.

Ma and Lerch 2022, Representation Learning for the Automatic Indexing of Sound Effects Libraries,
ISMIR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from safe_framework.data.audio import check_waveform
from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames
from safe_framework.interfaces.windows import Window
from safe_framework.pretrained import load_pretrained
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio

if TYPE_CHECKING:
    from safe_framework_plugins.encoders.aisfx_network import AisfxConfig


class AisfxEncoder(Encoder):
    """Frames of a network of convolutions over a spectrogram, 5.4 a second (Ma and Lerch 2022).

    It hears timbre: on notes of instruments its frames say more than those of Whisper, which was
    trained on speech; the two together, by `multimodal`, say most. Each recording is brought to
    a peak of 1 and encoded by itself.

    Args:
        model: the card ``"aisfx"``, or a folder with its ``config.json`` and ``model.safetensors``.
        block: after which of the network's blocks of two convolutions the frames are taken; a
            negative one counts from the last. The blocks above are dropped.
        bands: parts of the spectrum that are kept apart; within each, frequencies are averaged.
        seconds: the longest recording that it takes at once.

    Raises:
        CheckpointError: the network cannot be had.
        ValueError: an option is out of its range.
    """

    def __init__(
        self, *, model: str, block: int = -1, bands: int = 1, seconds: float = 30.0
    ) -> None:
        set_aside_broken_torchaudio()
        from safe_framework_plugins.encoders.aisfx_network import AisfxModel

        super().__init__()
        if not 0 < seconds < math.inf:
            raise ValueError(f"`seconds` must be above 0 and finite, not {seconds}")
        (self.network,) = load_pretrained(model, AisfxModel, kind="aisfx", title="network of aiSFX")
        self._config: AisfxConfig = self.network.config
        count = len(self.network.blocks)
        if not (1 <= block <= count or -count <= block <= -1):
            raise ValueError(f"`block` must be between 1 and {count}, or negative, not {block}")
        kept = block if block > 0 else count + block + 1
        self.network.keep(kept)
        # On processors convolutions take less time where the channels of a place lie side by side.
        self.network.to(memory_format=torch.channels_last)
        heights = self._config.mel_bins >> self.network.halvings
        if not 1 <= bands <= heights:
            raise ValueError(f"`bands` must be between 1 and {heights}, not {bands}")
        self._bands, self.seconds = bands, seconds
        self.dim = self._config.channels[kept - 1] * bands
        self.sampling_rate = self._rate = self._config.sampling_rate
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> AisfxEncoder:
        """Stay in evaluation mode: nothing of it trains."""
        return super().train(False)

    def whole_window(self) -> Window:
        """``seconds`` at the network's rate."""
        steps = int(self.seconds * self._rate)
        return Window(steps, self._frames(steps), self._rate)

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Log-mel spectrograms of waveforms, padded with zeros to the longest.

        Args:
            samples: ``Waveform``s at the encoder's rate, none longer than ``seconds``.

        Returns:
            ``spectrograms`` (batch, steps, bands) and ``lengths`` (batch,), in steps.

        Raises:
            SampleError: a sample is no waveform, has another rate, holds NaN or Inf, or is too
                long.
        """
        found = [self._spectrogram(sample, f"`samples[{i}]`") for i, sample in enumerate(samples)]
        lengths = torch.tensor([len(one) for one in found])
        return {"spectrograms": pad_sequence(found, batch_first=True), "lengths": lengths}

    def forward(self, **inputs: Tensor) -> Frames:
        """Encode spectrograms, (batch, steps, bands) -> (batch, frames, dim)."""
        lengths = inputs["lengths"].tolist()
        rows = [
            self._encode(steps[:length])
            for steps, length in zip(inputs["spectrograms"], lengths, strict=True)
        ]
        values = pad_sequence(rows, batch_first=True)
        counts = torch.tensor([len(row) for row in rows], device=values.device)
        places = torch.arange(values.shape[1], device=values.device)
        return Frames(values, places < counts[:, None])

    def _encode(self, steps: Tensor) -> Tensor:
        """Frames of one recording, (steps, mel bins) -> (frames, dim)."""
        maps = self.network(steps[None])[0]  # (channels, frames, heights)
        pooled = functional.adaptive_avg_pool2d(maps, (None, self._bands))
        return pooled.permute(1, 0, 2).flatten(1)

    def _spectrogram(self, sample: Sample, name: str) -> Tensor:
        """The logarithm of power in bands, as the network was trained on it, (steps, bands)."""
        waveform = check_waveform(sample, name, "aisfx", self._rate)
        if waveform.seconds > self.seconds:
            raise SampleError(
                f"{name} lasts {waveform.seconds:.2f} s, longer than {self.seconds} s",
                hint=f"`seconds = {math.ceil(waveform.seconds)}`, or cut the recording",
            )
        wave = torch.from_numpy(np.array(waveform.values, np.float32))
        wave = wave / peak if (peak := wave.abs().max()) > 0 else wave
        config, width = self._config, self._config.window_length
        spectrum = torch.stft(
            wave,
            width,
            config.hop_length,
            window=torch.hann_window(width, dtype=wave.dtype),
            pad_mode="constant",
            return_complex=True,
        )
        power = (
            _mel_filters(config.sampling_rate, width, config.mel_bins).T @ spectrum.abs().square()
        )
        steps = torch.log10(power * 10_000 + 1).T / config.largest
        # One that is too short for a frame goes on in silence, which is 0.
        return functional.pad(steps, (0, 0, 0, max(0, (1 << self.network.halvings) - len(steps))))

    def _frames(self, samples: int) -> int:
        """How many frames so many samples give."""
        steps = 1 + samples // self._config.hop_length
        return max(1, steps >> int(self.network.halvings))


@cache
def _mel_filters(rate: int, width: int, bands: int) -> Tensor:
    """How much of each frequency is in each band, (frequencies, bands); a band's sum is 1."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=width // 2 + 1,
        num_mel_filters=bands,
        min_frequency=0.0,
        max_frequency=rate / 2,
        sampling_rate=rate,
        mel_scale="htk",
    )
    return torch.from_numpy(filters / filters.sum(axis=0)).float()
