"""A modality of made-up frames, for whoever tests one plugin and needs the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.config.schema import Attend
from safe_framework.core.model import SafeModel
from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.projector import Projector
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames, Memory, Tokens
from safe_framework.testing.bases import HIDDEN

FRAMES, DIM = 3, 4


class ToyEncoder(Encoder):
    """Takes tensors (frames, dim) as they are, of any number of frames.

    Args:
        dim: width of a frame.
    """

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.dim = dim
        self.mix = nn.Linear(dim, dim)
        self.requires_grad_(False)

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """``values`` (batch, frames, dim), filled up with zeros, and their ``mask``."""
        for number, sample in enumerate(samples):
            if not torch.isfinite(sample).all():
                raise SampleError(f"samples[{number}] holds NaN", hint="repair it")
        longest = max(len(sample) for sample in samples)
        values = torch.zeros(len(samples), longest, self.dim)
        mask = torch.zeros(len(samples), longest, dtype=torch.bool)
        for row, sample in enumerate(samples):
            values[row, : len(sample)], mask[row, : len(sample)] = sample, True
        return {"values": values, "mask": mask}

    def forward(self, **inputs: Tensor) -> Frames:
        """One frame for each that came in."""
        return Frames(torch.tanh(self.mix(inputs["values"])), inputs["mask"])


class ToyProjector(Projector):
    """One token for each frame."""

    def __init__(self, frame_dim: int = DIM, hidden_size: int = HIDDEN) -> None:
        super().__init__()
        self.linear = nn.Linear(frame_dim, hidden_size)

    def forward(self, frames: Frames) -> Tokens:
        """Every frame, mapped linearly."""
        values = torch.where(frames.mask.unsqueeze(-1), frames.values, 0.0)
        return Tokens(self.linear(values), frames.mask)


class ToyFusion(FusionAdapter):
    """A mixture of the position's own state and the mean token.

    It changes the outputs from the start, unlike an adapter that is to be trained, so that a test
    of another plugin sees what reaches the base.

    Args:
        base: not needed.
        layers: decoder layers whose input it changes.
    """

    def __init__(self, base: Any = None, *, layers: Sequence[int] = (0, 1)) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def remember(self, tokens: Tokens) -> Memory:
        """The mean token, (batch, hidden)."""
        weight = tokens.mask.unsqueeze(-1).to(tokens.values.dtype)
        mean = (tokens.values * weight).sum(1) / weight.sum(1)
        return Memory({"mean": mean}, tokens.mask)

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        """The delta of each position, (batch, length, hidden)."""
        mean = memory.tensors["mean"].unsqueeze(1)  # (batch, 1, hidden)
        delta: Tensor = self.scale * torch.sin(self.query(hidden) + mean)
        return delta


def attached(
    base: nn.Module,
    *names: str,
    fusion: FusionAdapter | None = None,
    tokenizer: Any = None,
    attend: Attend = "all",
) -> SafeModel:
    """The base with the toy modality under each of ``names`` (``touch`` if none is given)."""
    model = SafeModel(base, tokenizer)
    for number, name in enumerate(names or ("touch",)):
        torch.manual_seed(number)
        model.add_modality(
            name,
            encoder=ToyEncoder(),
            projector=ToyProjector(),
            fusion=fusion if fusion is not None else ToyFusion(layers=(number % 2,)),
            attend=attend,
        )
    return model


def felt(
    rows: int, name: str = "touch", present: Sequence[bool] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """A random sample of the toy modality for each row, as ``prepare`` would give it."""
    generator = torch.Generator().manual_seed(seed + 100)
    here = torch.ones(rows, dtype=torch.bool) if present is None else torch.tensor(present)
    return {
        f"{name}__present": here,
        f"{name}__values": torch.randn(rows, FRAMES, DIM, generator=generator),
        f"{name}__mask": torch.ones(rows, FRAMES, dtype=torch.bool),
    }
