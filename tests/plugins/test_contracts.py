"""Every shipped plugin keeps its interface's laws: one small class for each plugin.

A plugin's class is called ``Test`` and the plugin's own class name. Encoders, which need
checkpoints, have theirs in ``test_encoder_contracts.py``.
"""

import ast
from pathlib import Path

import pytest

from safe_framework.interfaces.registry import REGISTRIES
from safe_framework.testing import (
    FusionAdapterContract,
    ProjectorContract,
    RetentionRegularizerContract,
)
from safe_framework_plugins.fusion.cross_attention import CrossAttentionFusion
from safe_framework_plugins.fusion.gated import GatedFusion
from safe_framework_plugins.fusion.lora import LoraFusion
from safe_framework_plugins.fusion.multilayer import MultilayerFusion
from safe_framework_plugins.fusion.tanh_gated import TanhGatedFusion
from safe_framework_plugins.projectors.adaptive import AdaptiveProjector
from safe_framework_plugins.projectors.resampler import ResamplerProjector
from safe_framework_plugins.projectors.standard import StandardProjector
from safe_framework_plugins.retention.distillation import DistillationRegularizer
from safe_framework_plugins.retention.fisher import FisherRegularizer
from safe_framework_plugins.retention.nullspace import NullSpaceRegularizer

# Projectors


class TestStandardProjector(ProjectorContract):
    def make(self, frame_dim, hidden_size):
        return StandardProjector(frame_dim, hidden_size, tokens=3, hidden_dim=16)


class TestResamplerProjector(ProjectorContract):
    def make(self, frame_dim, hidden_size):
        return ResamplerProjector(frame_dim, hidden_size, tokens=3, dim=8, heads=2)


class TestAdaptiveProjector(ProjectorContract):
    def make(self, frame_dim, hidden_size):
        return AdaptiveProjector(frame_dim, hidden_size, max_tokens=4, dim=8, heads=2)


# Fusion adapters


class TestLoraFusion(FusionAdapterContract):
    def make(self, base):
        targets = ("query", "key", "value")
        return LoraFusion(base, layers=[0, -1], rank=2, targets=targets)


class TestCrossAttentionFusion(FusionAdapterContract):
    def make(self, base):
        return CrossAttentionFusion(base, layers=[0, -1], nothing=True)


class TestGatedFusion(FusionAdapterContract):
    def make(self, base):
        return GatedFusion(base, layers=[0, -1], gate_size=8)


class TestMultilayerFusion(FusionAdapterContract):
    def make(self, base):
        return MultilayerFusion(base, every=1, shared=True)


class TestTanhGatedFusion(FusionAdapterContract):
    def make(self, base):
        return TanhGatedFusion(base, layers=[0, -1], expansion=2)


# Retention regularizers


class TestDistillationRegularizer(RetentionRegularizerContract):
    def make(self):
        return DistillationRegularizer()


class TestFisherRegularizer(RetentionRegularizerContract):
    def make(self):
        return FisherRegularizer()


class TestNullSpaceRegularizer(RetentionRegularizerContract):
    def make(self):
        return NullSpaceRegularizer(threshold=0.1)


# None is left out

TESTS = Path(__file__).parents[1]
CONTRACTS = {
    "encoder": "EncoderContract",
    "projector": "ProjectorContract",
    "fusion": "FusionAdapterContract",
    "retention": "RetentionRegularizerContract",
}
SHIPPED = [
    (kind, point)
    for kind, registry in REGISTRIES.items()
    for point in registry.points()
    if point.dist.name == "safe-framework"
]


def classes_for(plugin):
    """The contract classes of the folders where a plugin's may be, by name.

    Those are ``plugins`` and, where the plugin needs what other tests must not have beside them,
    ``optional`` and its name. Files are read and not imported, since that may need it too.
    """
    files = [
        f for name in ("plugins", f"optional/{plugin}") for f in TESTS.glob(f"{name}/test_*.py")
    ]
    trees = [ast.parse(file.read_text("utf-8")) for file in files if "contract" in file.stem]
    return {node.name: node for tree in trees for node in tree.body if hasattr(node, "bases")}


def test_there_are_shipped_plugins():
    """The list that the next test goes through holds each kind."""
    assert {kind for kind, _ in SHIPPED} == set(CONTRACTS)


@pytest.mark.parametrize(("kind", "point"), SHIPPED, ids=lambda part: getattr(part, "name", part))
def test_every_plugin_is_held_to_its_contract(kind, point):
    """A shipped plugin has a class that inherits its kind's contract, and makes it."""
    held = classes_for(point.name).get(f"Test{point.attr}")
    assert held is not None, f"add a class `Test{point.attr}`"
    assert CONTRACTS[kind] in [ast.unparse(base) for base in held.bases]
    (make,) = [part for part in held.body if getattr(part, "name", "") == "make"]
    assert f"return {point.attr}(" in ast.unparse(make)
