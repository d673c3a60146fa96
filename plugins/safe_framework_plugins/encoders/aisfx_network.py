"""The network of aiSFX: its layers are those of Kong et al. 2018 (arXiv:1808.00773).

A model of transformers' form, so that it is imported by what makes one alone.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel


class AisfxConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # transformers has no types
    """Sizes of the network, and how its spectrograms are made.

    Attributes:
        channels: of each block's convolutions.
        sampling_rate: of the sound, in hertz.
        window_length: of the Fourier transform, in samples.
        hop_length: from one step of the spectrogram to the next, in samples.
        mel_bins: bands of the spectrogram.
        largest: of all spectrograms that it was trained on, by which each is divided.
    """

    model_type = "aisfx"

    channels: tuple[int, ...] = (64, 128, 256, 512)
    sampling_rate: int = 44_100
    window_length: int = 2_048
    hop_length: int = 1_024
    mel_bins: int = 96
    largest: float = 9.457798957824707


class AisfxModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # here neither
    """Blocks of two convolutions of 3 x 3, each behind a rectifier, halved between blocks.

    Args:
        config: its sizes.
    """

    config_class = AisfxConfig
    main_input_name = "spectrogram"

    def __init__(self, config: AisfxConfig) -> None:
        super().__init__(config)
        widths = [1, *config.channels]
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Conv2d(before, width, 3, padding=1),
                    nn.Conv2d(width, width, 3, padding=1),
                ]
            )
            for before, width in pairwise(widths)
        )
        self.halvings = len(widths) - 2  # the last block keeps its size
        self.post_init()  # type: ignore[no-untyped-call]  # nor here

    def keep(self, count: int) -> None:
        """Drop all blocks but the first so many."""
        self.halvings = min(count, self.halvings)
        self.blocks = self.blocks[:count]

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Maps of a spectrogram, (batch, steps, mel bins) -> (batch, channels, frames, heights)."""
        maps = spectrogram.unsqueeze(1)
        for place, block in enumerate(self.blocks):
            for convolution in cast(nn.ModuleList, block):
                maps = convolution(maps).relu_()
            if place < self.halvings:
                maps = functional.max_pool2d(maps, 2)
        return maps
