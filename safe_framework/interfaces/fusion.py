"""The interface of what lets a frozen decoder layer attend to a modality."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Self

from torch import Tensor, nn

from safe_framework.interfaces.given_options import keep_given
from safe_framework.interfaces.types import Memory, Tokens


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

    def __new__(cls, *wired: Any, **options: Any) -> Self:
        """A plugin that knows the options it is made with."""
        return keep_given(super().__new__(cls), options)

    @abstractmethod
    def remember(self, tokens: Tokens) -> Memory:
        """Compute once for a call what every position and layer will need of the tokens."""

    @abstractmethod
    def forward(
        self, hidden: Annotated[Tensor, "batch length hidden"], memory: Memory, layer: int
    ) -> Annotated[Tensor, "batch length hidden"]:
        """The delta for the input hidden states of decoder layer ``layer``."""


def chosen_layers(layers: Sequence[int | float], count: int) -> tuple[int, ...]:
    """Decoder layers named by number or by depth, ascending and without repeats.

    Args:
        layers: numbers from 0, where negative ones count from the last layer; or fractions between
            0 and 1 of the depth, such as 0.5 for the layer in the middle.
        count: how many layers there are.

    Raises:
        ValueError: there is none, or the base has no such layer.

    >>> chosen_layers([0, -1, 0.5], 12)
    (0, 6, 11)
    """
    if not layers:
        raise ValueError("`layers` must name at least one decoder layer")
    if wrong := [part for part in layers if isinstance(part, float) and not 0 < part < 1]:
        raise ValueError(
            f"`layers` must hold whole numbers or fractions between 0 and 1, not {wrong[0]}"
        )
    numbers = [int(part * count) if isinstance(part, float) else part for part in layers]
    found = sorted({number + count if number < 0 else number for number in numbers})
    if found[0] < 0 or found[-1] >= count:
        raise ValueError(f"`layers` must be between {-count} and {count - 1}, not {list(layers)}")
    return tuple(found)
