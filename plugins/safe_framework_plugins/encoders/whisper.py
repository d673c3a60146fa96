"""Whisper's encoder.

Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision (arXiv:2212.04356).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safe_framework.data.audio import Waveform, check_waveform
from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import TranscribingEncoder
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames
from safe_framework.interfaces.windows import Window
from safe_framework.pretrained import load_pretrained
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio
from safe_framework.utils.tensors import float32_by_default
from safe_framework_plugins.encoders.transcript import WhisperTranscriber

if TYPE_CHECKING:
    from transformers import WhisperFeatureExtractor


class WhisperEncoder(TranscribingEncoder):
    """Frames of Whisper's frozen encoder, 50 a second (Radford et al. 2022, arXiv:2212.04356).

    Whisper pads every recording to one window and attends to all of it; the mask leaves out the
    frames beyond the recording's end. A window shorter than Whisper's 30 s keeps the first
    positions only, and costs that much less. It can transcribe: ``transcript = true`` beside it
    puts what was said into the prompt.

    Args:
        model: a Whisper checkpoint: a card such as ``"whisper-tiny.en"``, a folder or a hub id.
        layer: which hidden states to give, as an index into transformers' ``hidden_states``: 0
            before the first layer, n after the n-th; the last one, also -1 or None, includes
            the final norm. The layers above are dropped.
        seconds: the window; None for the model's own, which is 30 s.

    Raises:
        CheckpointError: the model cannot be had, or is no Whisper.
        ValueError: an option is out of its range.
    """

    def __init__(
        self, *, model: str, layer: int | None = None, seconds: float | None = None
    ) -> None:
        set_aside_broken_torchaudio()
        from transformers import WhisperFeatureExtractor
        from transformers.models.whisper.modeling_whisper import WhisperEncoder as Architecture

        super().__init__()
        self._checkpoint = model
        self.encoder, self._extractor = load_pretrained(
            model,
            Architecture,
            WhisperFeatureExtractor,
            kind="whisper",
            title="Whisper",
            key_mapping={r"^(model\.)?encoder\.": ""},  # the decoder's weights are never read
        )
        self.dim = self.encoder.config.d_model
        self.sampling_rate = self._extractor.sampling_rate
        self._stride = _stride(self.encoder, self._extractor)
        self._longest = self.seconds
        _keep_layers(self.encoder, layer)
        _shorten(self.encoder, seconds, self.sampling_rate / self._stride)
        self.requires_grad_(False).eval()

    @property
    def seconds(self) -> float:
        """The longest recording that it takes."""
        return float(self._window / self._extractor.sampling_rate)

    @property
    def _window(self) -> int:
        return int(self.encoder.max_source_positions * self._stride)

    def train(self, mode: bool = True) -> WhisperEncoder:
        """Stay in evaluation mode: a frozen encoder drops nothing out."""
        return super().train(False)

    def whole_window(self) -> Window:
        """The window, at the extractor's rate."""
        rate = self._extractor.sampling_rate
        return Window(self._window, self.encoder.max_source_positions, rate)

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Log-mel spectrograms of waveforms, each padded with silence to the window.

        Args:
            samples: ``Waveform``s at the encoder's rate, none longer than its window.

        Returns:
            ``input_features`` (batch, mel, steps) and ``lengths`` (batch,), in frames.

        Raises:
            SampleError: a sample is no waveform, has another rate, holds NaN or Inf, or is
                longer than the window.
        """
        for place, sample in enumerate(samples):
            self._check(sample, f"`samples[{place}]`")
        # One at a time, since products of a batch may round otherwise than those of a row.
        features = [self._spectrogram(sample) for sample in samples]
        lengths = [math.ceil(len(sample.values) / self._stride) for sample in samples]
        return {"input_features": torch.cat(features), "lengths": torch.tensor(lengths)}

    def forward(self, **inputs: Tensor) -> Frames:
        """Encode spectrograms, (batch, mel, steps) -> (batch, frames, dim)."""
        values = self.encoder(inputs["input_features"]).last_hidden_state
        places = torch.arange(values.shape[1], device=values.device)
        return Frames(values, places < inputs["lengths"][:, None])

    def transcriber(
        self, *, language: str | None = None, timestamps: bool = False
    ) -> WhisperTranscriber:
        """The whole of the checkpoint, whose decoder writes down what is said."""
        made = WhisperTranscriber(self._checkpoint, language=language, timestamps=timestamps)
        return made.to(next(self.encoder.parameters()).device)

    def _spectrogram(self, sample: Waveform) -> Tensor:
        with float32_by_default():  # the extractor's filters are of torch's default type
            extracted = self._extractor(
                [sample.values],
                max_length=self._window,
                sampling_rate=sample.sampling_rate,
                return_tensors="pt",
            )
        features: Tensor = extracted["input_features"]
        return features  # (1, mel, steps)

    def _check(self, sample: Sample, name: str) -> None:
        check_waveform(sample, name, "whisper", self._extractor.sampling_rate)
        if len(sample.values) > self._window:
            raise SampleError(
                f"{name} lasts {sample.seconds:.2f} s, longer than the window of {self.seconds} s",
                hint=self._room(sample.seconds),
            )

    def _room(self, seconds: float) -> str:
        if seconds > self._longest:
            return f"cut the recording: the model's own window is {self._longest} s"
        return f"`seconds = {min(math.ceil(seconds), self._longest)}`, or cut the recording"


def _stride(encoder: Any, extractor: WhisperFeatureExtractor) -> int:
    """Samples of a recording for one frame."""
    return int(extractor.hop_length * encoder.conv1.stride[0] * encoder.conv2.stride[0])


def _keep_layers(encoder: Any, layer: int | None) -> None:
    count = len(encoder.layers)
    if layer is None:
        return
    if not -count - 1 <= layer <= count:
        raise ValueError(f"`layer` must be between {-count - 1} and {count}, not {layer}")
    kept = layer % (count + 1)
    if kept < count:
        encoder.layers = encoder.layers[:kept]
        encoder.layer_norm = nn.Identity()  # the final norm belongs to the last layer's output


def _shorten(encoder: Any, seconds: float | None, frame_rate: float) -> None:
    longest = encoder.max_source_positions / frame_rate
    if seconds is None:
        return
    if not 1 / frame_rate <= seconds <= longest:
        raise ValueError(f"`seconds` must be between {1 / frame_rate} and {longest}, not {seconds}")
    positions = math.ceil(round(seconds * frame_rate, 6))
    kept = encoder.embed_positions.weight[:positions].detach().clone()
    encoder.embed_positions.weight = nn.Parameter(kept)
    encoder.embed_positions.num_embeddings = positions
    encoder.max_source_positions = encoder.config.max_source_positions = positions
