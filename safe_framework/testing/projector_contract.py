"""The laws of a projector, as tests."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_framework.interfaces.projector import Projector
from safe_framework.interfaces.types import Frames, Tokens, all_real
from safe_framework.testing.assertions import (
    assert_near,
    check_shapes,
    finite_gradients,
    never_learning,
    tried,
)
from safe_framework.testing.strategies import dtypes, frames, hostile_values, sizes, spoilt

_DIM, _HIDDEN = 4, 8


class ProjectorContract(ABC):
    """What every projector promises; inherit it in a test, and say how yours is made.

    One test for each Law of :class:`safe_framework.Projector`, of the same name::

        class TestMeanProjector(ProjectorContract):
            def make(self, frame_dim, hidden_size):
                return MeanProjector(frame_dim, hidden_size)
    """

    @abstractmethod
    def make(self, frame_dim: int, hidden_size: int) -> Projector:
        """A new projector for these sizes."""

    @tried()
    @given(st.data(), sizes(6), st.sampled_from([4, 8, 12]), dtypes())
    def test_tokens_shape(
        self, data: st.DataObject, dim: int, hidden: int, dtype: torch.dtype
    ) -> None:
        """Law: it gives (batch, tokens, hidden) with a mask (batch, tokens), in every type."""
        projector = self.make(dim, hidden).eval().to(dtype)
        given_frames = data.draw(frames(dim))
        typed = Frames(given_frames.values.to(dtype), given_frames.mask)
        tokens = check_shapes(projector, typed, sizes={"dim": dim, "hidden": hidden})
        assert isinstance(tokens, Tokens)
        assert tokens.values.dtype == dtype
        assert tokens.mask.dtype == torch.bool
        assert projector.tokens in (None, tokens.values.shape[1])

    @tried()
    @given(frames(_DIM), hostile_values(), st.integers(0, 3))
    def test_mask_respected(self, clean: Frames, hostile: float, padding: int) -> None:
        """Law: what masked frames hold, and how many there are, changes no token and no gradient.

        Tokens are the same but for rounding; a masked NaN reaches no parameter's gradient.
        """
        projector = self.make(_DIM, _HIDDEN).eval()
        values = _padded(spoilt(clean.values, clean.mask, hostile), padding, hostile)
        mask = _padded(clean.mask, padding, False)
        expected, tokens = projector(clean), projector(Frames(values, mask))
        assert tokens.mask.sum(1).tolist() == expected.mask.sum(1).tolist()
        assert_near(tokens.values[tokens.mask], expected.values[expected.mask])
        loss = tokens.values[tokens.mask].sum()
        loss.backward()
        assert finite_gradients(projector)

    def test_differentiable(self) -> None:
        """Law: every trainable parameter gets a gradient within a few steps from a fresh start."""
        torch.manual_seed(0)
        projector = self.make(_DIM, _HIDDEN).train()
        values = torch.randn(6, 5, _DIM)
        given_frames = Frames(values, all_real(values))
        assert never_learning(projector, lambda: projector(given_frames).values) == []


def _padded(values: torch.Tensor, count: int, fill: float) -> torch.Tensor:
    """Axis 1 longer by ``count`` of ``fill``."""
    shape = (values.shape[0], count, *values.shape[2:])
    return torch.cat([values, values.new_full(shape, fill)], dim=1)
