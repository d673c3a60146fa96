"""CLAP's audio encoder, an HTS-AT transformer.

Wu et al. 2023, Large-Scale Contrastive Language-Audio Pretraining with Feature Fusion and
Keyword-to-Caption Augmentation (arXiv:2211.06687).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from safe_framework.data.audio import Waveform, check_waveform
from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames, all_real
from safe_framework.interfaces.windows import Window
from safe_framework.pretrained import load_pretrained
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio


class ClapEncoder(Encoder):
    """CLAP's view of a recording, as one embedding or as a sequence (arXiv:2211.06687).

    A recording shorter than CLAP's window of 10 s is repeated until the window is full. A fused
    checkpoint also takes longer ones: it sees the whole, shrunk to the window, beside three
    windows from the middle of each third. Any other refuses them.

    Args:
        model: a CLAP checkpoint, such as ``"laion/clap-htsat-unfused"``: a card, a folder or a
            hub id.
        frames: ``"pooled"`` for one frame, the projected embedding that CLAP compares with
            texts, of unit length; ``"sequence"`` for what comes before pooling, averaged over
            frequencies: 32 frames for the window, in their own width.
        input: ``"waveform"``, or ``"mel"`` for arrays of finished log-mel spectrograms as
            transformers' ``ClapFeatureExtractor`` makes them, (steps, mel) or (1 or 4, steps,
            mel).
        trainable: whether the weights take part in training.

    Raises:
        CheckpointError: the model cannot be had, or is no CLAP.
        ValueError: an option is none of its values.
    """

    def __init__(
        self,
        *,
        model: str,
        frames: Literal["pooled", "sequence"] = "pooled",
        input: Literal["waveform", "mel"] = "waveform",
        trainable: bool = False,
    ) -> None:
        set_aside_broken_torchaudio()
        from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

        if frames not in ("pooled", "sequence"):
            raise ValueError(f'`frames` must be "pooled" or "sequence", not {frames!r}')
        if input not in ("waveform", "mel"):
            raise ValueError(f'`input` must be "waveform" or "mel", not {input!r}')
        super().__init__()
        audio, self._extractor = load_pretrained(
            model, ClapAudioModelWithProjection, ClapFeatureExtractor, kind="clap", title="CLAP"
        )
        self._config = audio.config
        self.encoder = audio.audio_model
        self.projection: nn.Module | None = None
        self.dim = self._config.hidden_size
        if frames == "pooled":
            self.projection = audio.audio_projection
            self.dim = self._config.projection_dim
        self.sampling_rate = self._extractor.sampling_rate if input == "waveform" else None
        self.requires_grad_(trainable).eval()

    @property
    def seconds(self) -> float:
        """The window; a fused checkpoint takes longer recordings too."""
        return float(self._extractor.nb_max_samples / self._extractor.sampling_rate)

    def train(self, mode: bool = True) -> ClapEncoder:
        """Stay in evaluation mode, trainable or not: its batch norm would mix the rows."""
        return super().train(False)

    def whole_window(self) -> Window | None:
        """The window of waveforms; finished spectrograms are not cut."""
        if self.sampling_rate is None:
            return None
        frames, config = 1, self._config
        if self.projection is None:  # the picture of the sound, merged by 2 after each stage
            steps = config.spec_size // config.num_mel_bins * config.spec_size
            frames = steps // config.patch_stride[1] // 2 ** (len(config.depths) - 1)
        return Window(self._extractor.nb_max_samples, frames, self.sampling_rate)

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Log-mel spectrograms of waveforms, or a check of ready ones.

        Args:
            samples: ``Waveform``s at the encoder's rate; or spectrograms, where they are its
                input.

        Returns:
            ``input_features`` (batch, 1, steps, mel), with 4 instead of 1 for a fused
            checkpoint, ``is_longer`` (batch, 1), and ``parts`` (batch,): how much of the window
            the recording fills before it is repeated, from 0 to 1.

        Raises:
            SampleError: a sample is of another kind, rate or shape, holds NaN or Inf, or is
                longer than the window of a checkpoint that is not fused.
        """
        named = [(sample, f"`samples[{place}]`") for place, sample in enumerate(samples)]
        if self.sampling_rate is None:
            mels = [self._ready(sample, name) for sample, name in named]
            parts = [1.0] * len(mels)
        else:
            waves = [self._checked(sample, name) for sample, name in named]
            mels = [self._spectrogram(wave.values) for wave in waves]
            parts = [min(wave.seconds / self.seconds, 1.0) for wave in waves]
        features = torch.from_numpy(np.stack(mels).astype(np.float32))
        # Only a longer recording has four channels that differ, and takes CLAP's fused path.
        longer = (features != features[:, :1]).flatten(1).any(dim=1, keepdim=True)
        return {"input_features": features, "is_longer": longer, "parts": torch.tensor(parts)}

    def forward(self, **inputs: Tensor) -> Frames:
        """Encode spectrograms, (batch, channels, steps, mel) -> (batch, frames, dim)."""
        seen = self.encoder(inputs["input_features"], is_longer=inputs["is_longer"])
        if self.projection is not None:
            pooled = nn.functional.normalize(self.projection(seen.pooler_output), dim=-1)
            return Frames(pooled[:, None], all_real(pooled[:, None]))
        values = seen.last_hidden_state.mean(dim=2).transpose(1, 2)  # (batch, frames, dim)
        places = torch.arange(values.shape[1], device=values.device)
        return Frames(values, places < inputs["parts"][:, None] * values.shape[1])

    def _checked(self, sample: Sample, name: str) -> Waveform:
        wave = check_waveform(sample, name, "clap", self._extractor.sampling_rate)
        if wave.seconds > self.seconds and not self._config.enable_fusion:
            raise SampleError(
                f"{name} lasts {wave.seconds:.2f} s, longer than CLAP's window of {self.seconds} s",
                hint="cut the recording, or use a fused checkpoint: laion/clap-htsat-fused",
            )
        return wave

    def _spectrogram(self, wave: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Channels of log-mel, (channels, steps, mel), as ``ClapFeatureExtractor`` pads them."""
        window: int = self._extractor.nb_max_samples
        if len(wave) < window:
            wave = np.tile(wave, window // len(wave))
            wave = np.pad(wave, (0, window - len(wave)))
        mel = self._log_mel(wave)
        if not self._config.enable_fusion:
            return mel[None]
        if len(mel) == self._steps:
            return np.stack([mel] * 4)
        return self._fused(mel)

    def _fused(self, mel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The whole shrunk to the window, then the middle window of each third.

        The extractor draws these windows at random, and so gives another result at each call.
        """
        shrunk = nn.functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(mel))[None, None],
            size=[self._steps, mel.shape[1]],
            mode="bilinear",
            align_corners=False,
        )
        thirds = np.array_split(np.arange(len(mel) - self._steps + 1), 3)
        starts = [int(third[len(third) // 2]) if len(third) else 0 for third in thirds]
        windows = [mel[start : start + self._steps] for start in starts]
        return np.stack([shrunk[0, 0].numpy(), *windows])

    def _log_mel(self, wave: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        from transformers.audio_utils import spectrogram, window_function

        extractor = self._extractor
        fused = self._config.enable_fusion
        mel = spectrogram(
            wave,
            window_function(extractor.fft_window_size, "hann"),
            frame_length=extractor.fft_window_size,
            hop_length=extractor.hop_length,
            power=2.0,
            mel_filters=extractor.mel_filters if fused else extractor.mel_filters_slaney,
            log_mel="dB",
        )
        return np.asarray(mel.T, dtype=np.float32)  # (steps, mel)

    @property
    def _steps(self) -> int:
        return int(self._extractor.nb_max_samples // self._extractor.hop_length + 1)

    def _ready(self, sample: Sample, name: str) -> npt.NDArray[np.float32]:
        channels, bands = (4 if self._config.enable_fusion else 1), self._config.num_mel_bins
        mel = np.asarray(sample) if isinstance(sample, (np.ndarray, Tensor)) else np.zeros(0)
        if mel.ndim == 2:
            mel = np.stack([mel] * channels)
        if mel.shape != (channels, self._steps, bands) or not np.issubdtype(mel.dtype, np.floating):
            seen = f"{mel.dtype} {mel.shape}" if mel.size else f"a {type(sample).__name__}"
            raise SampleError(
                f"{name} is {seen}, not a log-mel spectrogram of floats {(self._steps, bands)}",
                hint='make it with ClapFeatureExtractor, or use `input = "waveform"`',
            )
        if not np.isfinite(mel).all():
            raise SampleError(f"{name} holds NaN or Inf", hint="drop or repair the spectrogram")
        return mel.astype(np.float32)
