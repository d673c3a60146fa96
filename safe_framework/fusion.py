"""The interface of what lets a frozen decoder layer attend to a modality."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

from torch import Tensor, nn

from safe_framework.shapes import Memory, Tokens


class FusionAdapter(nn.Module, ABC):
    """Proposes a change of some decoder layers' input; only the core applies it.

    The constructor takes ``(base: BaseFacts, *, options...)``.

    Attributes:
        layers: decoder layers whose input it changes, counted from 0, ascending.
        rebuilt: names of parameters that the constructor derives from the base again, so that
            an adapter on disk need not hold them.

    Laws:
        fresh_is_silent: a new adapter's delta is exactly zero.
        delta_shape: the delta has the shape of the hidden states it was shown.
        hands_off: the hidden states it was shown are never written to.
        length_independent: a position's delta depends on no later position, so that cached
            and uncached decoding agree.
        row_independent: a sample's memory and delta depend on nothing else in the batch.
        mask_respected: tokens whose mask is False have no effect.
        differentiable: every trainable parameter gets a gradient, at the latest once the
            output has moved from its zero start.
    """

    layers: tuple[int, ...]
    rebuilt: frozenset[str] = frozenset()

    @abstractmethod
    def remember(self, tokens: Tokens) -> Memory:
        """Compute once for a call what every position and layer will need of the tokens."""

    @abstractmethod
    def forward(
        self, hidden: Annotated[Tensor, "batch length hidden"], memory: Memory, layer: int
    ) -> Annotated[Tensor, "batch length hidden"]:
        """The delta for the input hidden states of decoder layer ``layer``."""
