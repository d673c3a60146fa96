"""Pretrained speech encoders of torchaudio.

wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477), HuBERT (Hsu et al. 2021, arXiv:2106.07447)
and WavLM (Chen et al. 2021, arXiv:2110.13900).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.nn.utils.rnn import pad_sequence

from safe_framework.data.audio import check_waveform
from safe_framework.errors import CheckpointError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames
from safe_framework.interfaces.windows import Window
from safe_framework.utils.optional_imports import load_torchaudio


class TorchaudioEncoder(Encoder):
    """Frames of one of torchaudio's pretrained speech models, about 50 a second.

    Each recording is encoded by itself and without padding: the base models normalise over time,
    so that padding would change every frame.

    Args:
        bundle: name in ``torchaudio.pipelines`` of a wav2vec 2.0, HuBERT or WavLM model, such as
            ``"WAV2VEC2_BASE"``, ``"HUBERT_LARGE"`` or ``"WAVLM_BASE_PLUS"``.
        layer: after which transformer layer to give the hidden states: n after the n-th, negative
            ones count from the last, None for the last. The last one includes the final norm of
            the models that have one; the layers above are dropped.
        seconds: the longest recording that it takes; attention costs the square of it.
        folder: where the bundle's weights lie, or are downloaded to under their own name; None
            for torch's own cache.
        trainable: whether the weights take part in training.

    Raises:
        CheckpointError: torchaudio cannot be imported, or has no such model, or its weights
            cannot be had.
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        *,
        bundle: str,
        layer: int | None = None,
        seconds: float = 30.0,
        folder: str | None = None,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < seconds < math.inf:
            raise ValueError(f"`seconds` must be above 0 and finite, not {seconds}")
        source = _bundle(bundle)
        self.model, self._normalized = _load(source, bundle, folder)
        _keep_layers(self.model.encoder.transformer, layer)
        _merge_weight_norm(self.model.encoder.transformer.pos_conv_embed)
        self.model.aux = None  # the head of a model that was trained to transcribe
        self.dim = int(self.model.encoder.feature_projection.projection.out_features)
        self.sampling_rate = self._rate = int(source.sample_rate)
        self.seconds = seconds
        self._convolutions = [
            (int(layer.conv.kernel_size[0]), int(layer.conv.stride[0]))
            for layer in self.model.feature_extractor.conv_layers
        ]
        self.requires_grad_(trainable).eval()

    def train(self, mode: bool = True) -> TorchaudioEncoder:
        """Stay in evaluation mode, trainable or not: frames are the same at every call."""
        return super().train(False)

    def whole_window(self) -> Window:
        """``seconds`` at the bundle's rate."""
        steps = int(self.seconds * self._rate)
        return Window(steps, self._frames(steps), self._rate, self._shortest())

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Waveforms, padded with zeros to the longest.

        Args:
            samples: ``Waveform``s at the bundle's rate, none longer than ``seconds``.

        Returns:
            ``waveforms`` (batch, samples) and ``lengths`` (batch,), in samples.

        Raises:
            SampleError: a sample is no waveform, has another rate, holds NaN or Inf, or is too
                long or too short.
        """
        waves = [self._wave(sample, f"`samples[{i}]`") for i, sample in enumerate(samples)]
        lengths = torch.tensor([len(wave) for wave in waves])
        return {"waveforms": pad_sequence(waves, batch_first=True), "lengths": lengths}

    def forward(self, **inputs: Tensor) -> Frames:
        """Encode waveforms, (batch, samples) -> (batch, frames, dim)."""
        lengths = inputs["lengths"].tolist()
        rows = [
            self.model(wave[None, :length])[0][0]
            for wave, length in zip(inputs["waveforms"], lengths, strict=True)
        ]  # each (frames, dim)
        values = pad_sequence(rows, batch_first=True)
        counts = torch.tensor([len(row) for row in rows], device=values.device)
        places = torch.arange(values.shape[1], device=values.device)
        return Frames(values, places < counts[:, None])

    def _wave(self, sample: Sample, name: str) -> Tensor:
        waveform = check_waveform(sample, name, "torchaudio", self._rate)
        if waveform.seconds > self.seconds:
            raise SampleError(
                f"{name} lasts {waveform.seconds:.2f} s, longer than {self.seconds} s",
                hint=f"`seconds = {math.ceil(waveform.seconds)}`, or cut the recording",
            )
        if self._frames(len(waveform.values)) < 1:
            raise SampleError(
                f"{name} has {len(waveform.values)} samples, too few for one frame",
                hint=f"pad it with silence to {self._shortest()} samples",
            )
        wave = torch.from_numpy(np.array(waveform.values))
        return nn.functional.layer_norm(wave, wave.shape) if self._normalized else wave

    def _frames(self, samples: int) -> int:
        """How many frames the convolutions make of that many samples."""
        for width, stride in self._convolutions:
            samples = max((samples - width) // stride + 1, 0)
        return samples

    def _shortest(self) -> int:
        """How many samples make one frame."""
        samples = 1
        for width, stride in reversed(self._convolutions):
            samples = (samples - 1) * stride + width
        return samples


def _bundle(name: str) -> Any:
    try:
        pipelines = load_torchaudio().pipelines
    except ImportError as error:
        why = str(error).partition("\n")[0]
        raise CheckpointError(
            f"the encoder `torchaudio` needs torchaudio, which cannot be imported: {why}",
            hint="`safe doctor` says whether it is missing or built for another torch",
        ) from error
    known = [each for each in dir(pipelines) if _is_speech(getattr(pipelines, each))]
    if name not in known:
        raise CheckpointError(
            f"torchaudio has no pretrained speech model `{name}`", hint=f"one of {', '.join(known)}"
        )
    return getattr(pipelines, name)


def _is_speech(value: object) -> bool:
    """Whether it is a bundle of a wav2vec 2.0 kind: its subclasses transcribe or align."""
    return any(kind.__name__ == "Wav2Vec2Bundle" for kind in type(value).__mro__)


def _load(source: Any, name: str, folder: str | None) -> tuple[Any, bool]:
    """The model, and whether it takes waveforms of zero mean and unit deviation."""
    options = {"model_dir": folder, "progress": False, "weights_only": True}
    try:
        with torch.random.fork_rng(devices=[]):  # its random start is not the caller's to pay for
            model = source.get_model(dl_kwargs=options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        why = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"the weights of `{name}` cannot be had: {why}") from error
    inner = getattr(model, "model", model)  # torchaudio's normalising wrapper mixes rows
    return inner, inner is not model and bool(model.normalize_waveform)


def _merge_weight_norm(positions: Any) -> None:
    """Store the weight that is kept as length and direction as one: the former cannot pickle."""
    old = positions.conv
    new = cast(Any, skip_init)(
        nn.Conv1d,
        old.in_channels,
        old.out_channels,
        kernel_size=old.kernel_size,
        padding=old.padding,
        groups=old.groups,
    )
    new.load_state_dict({"weight": old.weight, "bias": old.bias})
    positions.conv = new


def _keep_layers(transformer: Any, layer: int | None) -> None:
    count = len(transformer.layers)
    if layer is None:
        return
    if not (1 <= layer <= count or -count <= layer <= -1):
        raise ValueError(f"`layer` must be between 1 and {count}, or -{count} and -1, not {layer}")
    kept = layer if layer > 0 else count + layer + 1
    if kept < count:
        transformer.layers = transformer.layers[:kept]
        if not transformer.layer_norm_first:  # then it belongs to the last layer's output
            transformer.layer_norm = nn.Identity()
