"""Fusion adapters that break their interface, each in one way."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from safe_framework.interfaces.types import Memory
from tests.support.toys import ToyFusion


class WritesInPlace(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        hidden.mul_(2)
        return super().forward(hidden, memory, layer)


class WritesThroughDetach(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        hidden.detach()[:] = 7
        return super().forward(hidden, memory, layer)


class WritesThroughData(ToyFusion):
    """Unseen by torch's version counter; what it writes to must not be the base's."""

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        delta = super().forward(hidden, memory, layer)
        hidden.data[:] = math.nan
        return delta


class Raises(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        raise KeyError("nothing here")


class WrongShape(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        return super().forward(hidden, memory, layer)[:, :-1]


class Broadcasts(ToyFusion):
    """A shape that torch would quietly stretch."""

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        return super().forward(hidden, memory, layer)[:, :1]


class GivesNothing(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        return None  # type: ignore[return-value]  # what a forgotten return does


class GivesIntegers(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        return super().forward(hidden, memory, layer).long()


class GivesNan(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        return torch.full_like(hidden, math.nan)


class GivesInf(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        return torch.full_like(hidden, -math.inf)


class GivesDouble(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        return super().forward(hidden, memory, layer).double()


class GivesBfloat16(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        return super().forward(hidden, memory, layer).bfloat16()


class GivesWhatItWasShown(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        return hidden


class ConsumesRandomness(ToyFusion):
    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        return super().forward(hidden, memory, layer) + torch.randn(())


class AltersLater(ToyFusion):
    """Keeps all it was shown and all it gave, and overwrites it in the next layer."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        self.spoil()
        delta = super().forward(hidden, memory, layer)
        self.kept += [hidden, delta]
        return delta

    def spoil(self) -> None:
        """Overwrite everything that was kept."""
        for tensor in self.kept:
            tensor.data.fill_(math.nan)


CAUGHT = [
    WritesInPlace,
    WritesThroughDetach,
    Raises,
    WrongShape,
    Broadcasts,
    GivesNothing,
    GivesIntegers,
]
HARMLESS_WHEN_OFF = [
    WritesThroughData,
    GivesNan,
    GivesInf,
    GivesDouble,
    GivesBfloat16,
    GivesWhatItWasShown,
    ConsumesRandomness,
    AltersLater,
]
HOSTILE = CAUGHT + HARMLESS_WHEN_OFF
