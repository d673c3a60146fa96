"""Every shipped plugin keeps its interface's laws: one small class for each plugin.

A plugin's class here is called ``Test`` and the plugin's own class name.
"""

import numpy as np
import pytest

from safe_framework._registry import REGISTRIES
from safe_framework.data.audio import Waveform
from safe_framework.testing import (
    EncoderContract,
    FusionAdapterContract,
    ProjectorContract,
    RetentionRegularizerContract,
)
from safe_framework_plugins.encoders.whisper import WhisperEncoder
from safe_framework_plugins.fusion.lora import LoraFusion
from safe_framework_plugins.projectors.standard import StandardProjector
from safe_framework_plugins.retention.distillation import DistillationRegularizer
from safe_framework_plugins.retention.fisher import FisherRegularizer
from safe_framework_plugins.retention.nullspace import NullSpaceRegularizer
from tests.plugins.checkpoints import write_whisper


def sound(seed: int, rate: int, longest: float) -> Waveform:
    """Noise of any length up to ``longest`` seconds, like no other seed's."""
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 0.1, generator.integers(rate // 50, int(longest * rate)))
    return Waveform(values, rate)


# Encoders


class TestWhisperEncoder(EncoderContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, tmp_path_factory):
        cls.folder = write_whisper(tmp_path_factory.mktemp("whisper"))

    def make(self):
        return WhisperEncoder(model=self.folder)

    def sample(self, seed):
        return sound(seed, 16_000, longest=1.0)


# Projectors


class TestStandardProjector(ProjectorContract):
    def make(self, frame_dim, hidden_size):
        return StandardProjector(frame_dim, hidden_size, tokens=3, hidden_dim=16)


# Fusion adapters


class TestLoraFusion(FusionAdapterContract):
    def make(self, base):
        targets = ("query", "key", "value")
        return LoraFusion(base, layers=[0, -1], rank=2, targets=targets)


# Retention regularizers


class TestDistillationRegularizer(RetentionRegularizerContract):
    def make(self):
        return DistillationRegularizer()


class TestFisherRegularizer(RetentionRegularizerContract):
    def make(self):
        return FisherRegularizer()


class TestNullSpaceRegularizer(RetentionRegularizerContract):
    def make(self):
        return NullSpaceRegularizer()


# None is left out

CONTRACTS = {
    "encoder": EncoderContract,
    "projector": ProjectorContract,
    "fusion": FusionAdapterContract,
    "retention": RetentionRegularizerContract,
}
SHIPPED = [
    (kind, point)
    for kind, registry in REGISTRIES.items()
    for point in registry.points()
    if point.dist.name == "safe-framework"
]


def test_there_are_shipped_plugins():
    """The list that the next test goes through holds each kind."""
    assert {kind for kind, _ in SHIPPED} == set(CONTRACTS)


@pytest.mark.parametrize(("kind", "point"), SHIPPED, ids=lambda part: getattr(part, "name", part))
def test_every_plugin_is_held_to_its_contract(kind, point):
    """A shipped plugin has a class above that inherits its kind's contract, and makes it."""
    held = globals().get(f"Test{point.attr}")
    assert held is not None, f"add a class `Test{point.attr}`"
    assert issubclass(held, CONTRACTS[kind])
    assert point.attr in held.make.__code__.co_names
