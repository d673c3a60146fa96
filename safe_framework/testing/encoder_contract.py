"""The laws of an encoder, as tests."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import attrs
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames
from safe_framework.testing.assertions import assert_near, check_shapes, law_settings
from safe_framework.testing.strategies import seeds
from safe_framework.utils.tensors import bitwise_equal

_EXAMPLES = 10  # each runs a model
_batches = st.lists(seeds(), min_size=1, max_size=4)


class EncoderContract(ABC):
    """What every encoder promises; inherit it in a test, and say how yours is made.

    One test for each Law of :class:`safe_framework.Encoder`, of the same name::

        class TestChimeEncoder(EncoderContract):
            def make(self):
                return ChimeEncoder(bands=8)

            def sample(self, seed):
                return np.random.default_rng(seed).normal(size=100 + seed % 50)
    """

    @abstractmethod
    def make(self) -> Encoder:
        """The encoder; called once for each test."""

    @abstractmethod
    def sample(self, seed: int) -> Sample:
        """A sample that it takes, the same for the same seed; vary the length if it may."""

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder under test, as it is used: in evaluation mode."""
        return self.make().eval()

    @law_settings(_EXAMPLES)
    @given(seeds())
    def test_deterministic(self, seed: int) -> None:
        """Law: the same sample gives the same frames, whatever the state of random generators."""
        found = []
        for state in (0, 1):
            torch.manual_seed(state)
            found.append(self._encode([self.sample(seed)]))
        assert bitwise_equal(found[0].mask, found[1].mask)
        valid = found[0].mask
        assert bitwise_equal(found[0].values[valid], found[1].values[valid])

    @law_settings(_EXAMPLES)
    @given(_batches)
    def test_row_independent(self, batch: list[int]) -> None:
        """Law: a sample's valid frames are the same in any batch, but for rounding."""
        together = self._encode([self.sample(seed) for seed in batch])
        for row, seed in enumerate(batch):
            alone = self._encode([self.sample(seed)])
            assert_near(together.values[row][together.mask[row]], alone.values[0][alone.mask[0]])

    @law_settings(_EXAMPLES)
    @given(_batches)
    def test_prepare_on_cpu(self, batch: list[int]) -> None:
        """Law: ``prepare`` gives CPU tensors that pickle, with one row for each sample."""
        inputs = self.encoder.prepare([self.sample(seed) for seed in batch])
        copies = pickle.loads(pickle.dumps(dict(inputs)))
        assert inputs
        for name, tensor in inputs.items():
            assert isinstance(tensor, torch.Tensor), name
            assert tensor.device.type == "cpu", name
            assert tensor.shape[:1] == (len(batch),), name
            assert bitwise_equal(copies[name], tensor), name

    @law_settings(_EXAMPLES)
    @given(_batches)
    def test_frames_shape(self, batch: list[int]) -> None:
        """Law: ``forward`` gives finite frames (batch, frames, dim) and a mask (batch, frames)."""
        frames = self._encode([self.sample(seed) for seed in batch])
        assert isinstance(frames, Frames)
        assert frames.values.is_floating_point()
        assert frames.mask.dtype == torch.bool
        assert torch.isfinite(frames.values[frames.mask]).all()

    @law_settings(_EXAMPLES)
    @given(seeds())
    def test_window_frames(self, seed: int) -> None:
        """Law: a whole window gives the frames that it says, and no sample gives more."""
        window = self.encoder.whole_window()
        if window is None:
            return
        sample = self.sample(seed)
        assert self._encode([sample]).mask.shape[1] <= window.frames
        assert self._encode([_repeated(sample, window.steps)]).mask.shape[1] == window.frames

    def _encode(self, samples: Sequence[Sample]) -> Frames:
        sizes = {"batch": len(samples), "dim": self.encoder.dim}
        inputs = self.encoder.prepare(samples)
        with torch.no_grad():
            frames: Frames = check_shapes(self.encoder, sizes=sizes, **inputs)
        return frames


def _repeated(sample: Sample, steps: int) -> Sample:
    """The sample again and again, up to so many steps."""
    held = attrs.has(type(sample))
    values = sample.values if held else sample
    times = [-(-steps // len(values)), *[1] * (values.ndim - 1)]
    long = values.tile(times) if isinstance(values, torch.Tensor) else np.tile(values, times)
    return attrs.evolve(sample, values=long[:steps]) if held else long[:steps]
