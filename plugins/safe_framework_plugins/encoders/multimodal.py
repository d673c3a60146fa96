"""Several encoders side by side, on one recording."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from safe_framework import Encoder, Frames
from safe_framework.data.audio import Waveform, resample
from safe_framework.errors import SampleError
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.windows import Window


class MultimodalEncoder(Encoder):
    """Frames of any number of encoders, joined along their width or one after the other.

    Every encoder hears the whole recording, resampled to its own rate, so its frames are spread
    over it evenly. ``"concatenate"`` stretches each encoder's frames to as many as the finest
    one gives for that sample, by repeating the nearest in time; ``"separate"`` keeps them all.
    Either way each encoder has channels of its own, the others' being 0 in its separate frames,
    so that a projector's first linear map is one map for each encoder. What is masked is 0.

    Encoders that take no sampled signal are all given the sample as it is.

    Args:
        encoders: a table for each, as a modality's own.
        join: how their frames are joined.

    Raises:
        ValueError: there is none, or some take a sampled signal and some do not.
    """

    def __init__(
        self,
        *,
        encoders: Sequence[Encoder],
        join: Literal["concatenate", "separate"] = "concatenate",
    ) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("`encoders` must name at least one encoder")
        rates = [one.sampling_rate for one in encoders if one.sampling_rate is not None]
        if rates and len(rates) < len(encoders):
            raise ValueError("`encoders` must all take sampled signals, or none of them")
        self.encoders = nn.ModuleList(encoders)
        self.join = join
        self.dim = sum(one.dim for one in encoders)
        self.sampling_rate = max(rates, default=None)

    def train(self, mode: bool = True) -> MultimodalEncoder:
        """Switch the encoders that train; a frozen one stays in evaluation mode."""
        super().train(mode)
        for one in self.encoders:
            one.train(mode and any(p.requires_grad for p in one.parameters()))
        return self

    def whole_window(self) -> Window | None:
        """The encoders' own, at the highest of their rates; None where these last unlike."""
        own = [one.whole_window() for one in self._all()]
        known = [window for window in own if window is not None and window.rate is not None]
        if self.sampling_rate is None or len(known) < len(own):
            return None
        rate = self.sampling_rate
        lasting = {int(window.steps * rate / (window.rate or rate)) for window in known}
        if len(lasting) > 1:
            return None
        frames = [window.frames for window in known]
        shortest = max(
            math.ceil(window.shortest * rate / (window.rate or rate)) for window in known
        )
        joined = max(frames) if self.join == "concatenate" else sum(frames)
        return Window(lasting.pop(), joined, rate, shortest)

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """What each encoder prepares, its keys behind the encoder's place.

        Args:
            samples: ``Waveform``s of any rate; or what every encoder takes, where they take no
                sampled signal.

        Raises:
            SampleError: a sample is no waveform, or an encoder cannot take it.
        """
        if self.sampling_rate is not None:
            for place, sample in enumerate(samples):
                _check(sample, f"`samples[{place}]`")
        prepared: dict[str, Tensor] = {}
        for number, one in enumerate(self._all()):
            own = samples
            if one.sampling_rate is not None:
                own = [resample(sample, one.sampling_rate) for sample in samples]
            prepared |= {f"{number}_{key}": value for key, value in one.prepare(own).items()}
        return prepared

    def forward(self, **inputs: Tensor) -> Frames:
        """Encode what ``prepare`` gave, -> (batch, frames, dim)."""
        parts = []
        for number, one in enumerate(self._all()):
            start = f"{number}_"
            own = {k.removeprefix(start): v for k, v in inputs.items() if k.startswith(start)}
            frames = one(**own)
            values = torch.where(frames.mask.unsqueeze(-1), frames.values, 0.0)
            parts.append(Frames(values, frames.mask))
        return _side_by_side(parts) if self.join == "concatenate" else _in_a_row(parts)

    def _all(self) -> list[Encoder]:
        return [one for one in self.encoders if isinstance(one, Encoder)]


def _side_by_side(parts: Sequence[Frames]) -> Frames:
    """Frames of the finest encoder's number for each sample, (batch, frames, all widths)."""
    spans = torch.stack([_span(part.mask) for part in parts])  # (encoders, batch)
    counts = spans.max(dim=0).values  # (batch,)
    places = torch.arange(max(part.mask.shape[1] for part in parts), device=counts.device)
    inside = places < counts[:, None]  # (batch, frames)
    pairs = zip(parts, spans, strict=True)
    stretched = [_stretch(part, span, counts, places) for part, span in pairs]
    mask = torch.stack([part.mask for part in stretched]).any(dim=0) & inside
    values = torch.cat([part.values for part in stretched], dim=-1)
    return Frames(torch.where(mask.unsqueeze(-1), values, 0.0), mask)


def _stretch(part: Frames, span: Tensor, counts: Tensor, places: Tensor) -> Frames:
    """For each of ``counts`` places, the frame that covers the place's middle."""
    twice = (2 * places + 1) * span[:, None]  # whole numbers: nothing is rounded
    index = twice // (2 * counts.clamp_min(1)[:, None])
    index = index.clamp_max(part.mask.shape[1] - 1)  # (batch, frames)
    wide = index.unsqueeze(-1).expand(-1, -1, part.values.shape[-1])
    return Frames(part.values.gather(1, wide), part.mask.gather(1, index))


def _span(mask: Tensor) -> Tensor:
    """Frames up to the last one that is real, (batch,)."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (places * mask).max(dim=1).values


def _in_a_row(parts: Sequence[Frames]) -> Frames:
    """All frames, each in its encoder's channels, (batch, sum of frames, all widths)."""
    widths = [part.values.shape[-1] for part in parts]
    padded = [
        nn.functional.pad(part.values, (sum(widths[:number]), sum(widths[number + 1 :])))
        for number, part in enumerate(parts)
    ]
    return Frames(torch.cat(padded, dim=1), torch.cat([part.mask for part in parts], dim=1))


def _check(sample: Sample, name: str) -> None:
    if not isinstance(sample, Waveform):
        raise SampleError(
            f"{name} is a {type(sample).__name__}, which does not say its rate",
            hint="wrap it: safe_framework.data.audio.Waveform(values, sampling_rate)",
        )
