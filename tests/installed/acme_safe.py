"""Plugins of a third party, with just enough in them to be found, described and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.projector import Projector
from safe_framework.interfaces.retention import RetentionRegularizer

Shape = Literal["flat", "round"]
WIDTH = 64


class ChimeEncoder(Encoder):
    """Encodes chimes.

    A second paragraph.

    Args:
        model: the bell that
            was rung.
        rate: of the recording.
    """

    def __init__(self, *, model: str, rate: int = 16000, loud: bool = False) -> None:
        super().__init__()

    def prepare(self, samples):
        return {}

    def forward(self, **inputs):
        raise NotImplementedError


class SqueezeProjector(Projector):
    """Squeezes."""

    def __init__(
        self, frame_dim: int, hidden_size: int, *, width: int = WIDTH, shape: Shape = "flat"
    ) -> None:
        super().__init__()

    def forward(self, frames):
        raise NotImplementedError


class EchoFusion(FusionAdapter):
    """Echoes."""

    def __init__(
        self,
        base,
        *,
        layers: Sequence[int] = (0,),
        rank: int = 8,
        scale: float | None = None,
        where: tuple[int, ...] | Literal["all"] = "all",
        pair: tuple[int, float] = (1, 2.0),
        table: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()

    def remember(self, tokens):
        raise NotImplementedError

    def forward(self, hidden, memory, layer):
        raise NotImplementedError


class AnchorRegularizer(RetentionRegularizer):
    """Anchors; takes no options."""


class Stranger:
    """Inherits from no interface."""


def helper() -> None:
    """No class at all."""
