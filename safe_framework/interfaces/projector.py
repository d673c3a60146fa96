"""The interface of what maps a modality's frames into the base model's hidden size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

from torch import nn

from safe_framework.interfaces.given_options import keep_given
from safe_framework.interfaces.types import Frames, Tokens


class Projector(nn.Module, ABC):
    """Maps frames to tokens that fusion attends to; trainable.

    The constructor takes ``(frame_dim, hidden_size, *, options...)``.

    Attributes:
        tokens: how many tokens it gives for every sample; None where that is not fixed. Tokens
            can stand in the text (``inline``) only if it is.

    Laws:
        tokens_shape: gives (batch, tokens, hidden) with a mask (batch, tokens).
        mask_respected: frames whose mask is False have no effect.
        differentiable: every trainable parameter gets a gradient.
    """

    tokens: int | None = None

    def __new__(cls, *wired: Any, **options: Any) -> Self:
        """A plugin that knows the options it is made with."""
        return keep_given(super().__new__(cls), options)

    @abstractmethod
    def forward(self, frames: Frames) -> Tokens:
        """Project frames of the samples that are present."""

    def fit(self, frames: Frames) -> None:
        """Look at training frames once, before the first step (default: nothing).

        A projector may keep statistics of them, such as the mean and deviation of each
        channel, in buffers that are saved with the adapter.
        """
        return None
