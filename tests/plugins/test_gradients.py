"""Encoders that may train do: each parameter gets a gradient at the first step.

Projectors and fusion adapters are asked by the contract's ``test_differentiable``;
``test_fusion_adapters.py`` names the parameters that start behind a zero.
"""

import inspect

import numpy as np
import pytest
import torch

from safe_framework.data.audio import Waveform
from safe_framework.interfaces.registry import encoders
from tests.plugins.backbones import write_backbone
from tests.plugins.checkpoints import write_clap

PICTURE = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
CASES = {
    "clap": (
        lambda folder: {"model": write_clap(folder, fused=False)},
        Waveform(np.random.default_rng(0).normal(0, 0.1, 48_000), 48_000),
    ),
    "depth": (
        lambda folder: {"model": write_backbone(folder, "dinov2")},
        np.random.default_rng(0).uniform(0.1, 12, (20, 30)),
    ),
    "image": (lambda folder: {"model": write_backbone(folder, "vit")}, PICTURE[0]),
    "sensor": (
        lambda folder: {"channels": 2, "rate": 9.0, "dim": 6},
        np.random.default_rng(0).normal(size=(20, 2)),
    ),
    "video": (lambda folder: {"model": write_backbone(folder, "vit")}, PICTURE),
}
APART = {"torchaudio"}  # asked in tests/optional/torchaudio


def test_every_encoder_that_trains_is_here():
    """Law: the cases are the shipped encoders with the option `trainable`."""
    mine = {p.name: p.load() for p in encoders.points() if p.dist.name == "safe-framework"}
    train = {n for n, kind in mine.items() if "trainable" in inspect.signature(kind).parameters}
    assert train == set(CASES) | APART


@pytest.mark.parametrize("name", CASES)
def test_every_trainable_parameter_gets_a_gradient(name, tmp_path):
    """Law: with `trainable`, none is left without, from a fresh start."""
    options, sample = CASES[name]
    encoder = encoders.load(name)(**options(tmp_path), trainable=True).train()
    values = encoder(**encoder.prepare([sample, sample])).values
    (values * torch.randn(values.shape)).sum().backward()
    gradients = {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}
    assert gradients
    assert [n for n, g in gradients.items() if g is None or not g.any()] == []
