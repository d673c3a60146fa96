"""The laws of what writes down samples, as tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_framework.interfaces.encoder import Transcriber
from safe_framework.interfaces.samples import Sample
from safe_framework.testing.assertions import law_settings
from safe_framework.testing.strategies import seeds

_EXAMPLES = 5  # each runs a model


class TranscriberContract(ABC):
    """What every transcriber promises; inherit it in a test, and say how yours is made.

    One test for each Law of :class:`safe_framework.Transcriber`, of the same name::

        class TestChimeTranscriber(TranscriberContract):
            def make(self):
                return ChimeEncoder(bands=8).transcriber()

            def sample(self, seed):
                return np.random.default_rng(seed).normal(size=100 + seed % 50)
    """

    @abstractmethod
    def make(self) -> Transcriber:
        """The transcriber; called once for each test."""

    @abstractmethod
    def sample(self, seed: int) -> Sample:
        """A sample that it takes, the same for the same seed."""

    @cached_property
    def transcriber(self) -> Transcriber:
        """The transcriber under test."""
        return self.make()

    @law_settings(_EXAMPLES)
    @given(st.lists(seeds(), max_size=3))
    def test_one_text_each(self, batch: list[int]) -> None:
        """Law: each sample has one text; no samples have none."""
        found = self.transcriber([self.sample(seed) for seed in batch])
        assert len(found) == len(batch)
        assert all(isinstance(text, str) for text in found)

    @law_settings(_EXAMPLES)
    @given(st.lists(seeds(), min_size=2, max_size=3))
    def test_alone(self, batch: list[int]) -> None:
        """Law: a sample's text is the same in any batch."""
        samples = [self.sample(seed) for seed in batch]
        assert self.transcriber(samples) == [self.transcriber([one])[0] for one in samples]

    @law_settings(_EXAMPLES)
    @given(seeds())
    def test_deterministic(self, seed: int) -> None:
        """Law: the same sample has the same text, whatever the state of random generators."""
        found = []
        for state in (0, 1):
            torch.manual_seed(state)
            found.append(self.transcriber([self.sample(seed)]))
        assert found[0] == found[1]
