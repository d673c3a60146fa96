"""Cross-attention at many layers, each with its own scale."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.core.model import SafeModel
from safe_framework.interfaces.types import BaseFacts, Tokens
from safe_framework_plugins.fusion.multilayer import MultilayerFusion
from tests.support.fusions import learned
from tests.support.toys import HIDDEN, llama

DEPTH = 12


def facts() -> BaseFacts:
    """Of a tiny Llama of twelve layers."""
    return SafeModel(llama(num_hidden_layers=DEPTH)).facts()


def adapter(**options: Any) -> MultilayerFusion:
    """A new one, in evaluation mode."""
    torch.manual_seed(0)
    return MultilayerFusion(facts(), **options).eval()


def trained(**options: Any) -> MultilayerFusion:
    """One after something has been learned."""
    fusion = learned(adapter(**options))
    assert isinstance(fusion, MultilayerFusion)
    return fusion


def deltas(fusion: MultilayerFusion) -> list[Tensor]:
    """What it proposes at each of its layers for the same hidden states."""
    generator = torch.Generator().manual_seed(0)
    hidden, values = (torch.randn(2, n, HIDDEN, generator=generator) for n in (5, 3))
    memory = fusion.remember(Tokens(values, torch.ones(2, 3, dtype=torch.bool)))
    return [fusion(hidden, memory, layer) for layer in fusion.layers]


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, (3, 6, 9)),
        ({"layers": [4, 8, -1]}, (4, 8, 11)),
        ({"layers": [0.5, 0.9]}, (6, 10)),
        ({"every": 4}, (3, 7, 11)),
        ({"every": 5}, (4, 9)),
        ({"every": 1}, tuple(range(DEPTH))),
        ({"every": DEPTH}, (DEPTH - 1,)),
    ],
)
def test_layers(options: dict[str, Any], layers: tuple[int, ...]) -> None:
    """Law: a list, fractions of the depth, every k-th, or by default the quarter points."""
    assert adapter(**options).layers == layers


@pytest.mark.parametrize("shared", [True, False])
def test_each_layer_has_its_own_scale(shared: bool) -> None:
    """Law: a layer's scale multiplies its own delta, and no other layer's."""
    fusion = trained(shared=shared)
    before = deltas(fusion)
    with torch.no_grad():
        fusion.scales["6"].mul_(3.0)
    after = deltas(fusion)
    torch.testing.assert_close(after[1], 3 * before[1])
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[2], before[2])


def test_shared_weights_differ_by_their_scales_alone() -> None:
    """Law: with shared weights equal hidden states give proportional deltas; separate ones not."""
    fusion = trained(shared=True)
    first, second, _ = (d / s for d, s in zip(deltas(fusion), fusion.scales.values(), strict=True))
    torch.testing.assert_close(first, second)
    fusion = trained()
    first, second, _ = (d / s for d, s in zip(deltas(fusion), fusion.scales.values(), strict=True))
    assert not torch.allclose(first, second, rtol=0.1)


def test_shared_weights_are_held_once() -> None:
    """Law: one attention and a scale for each layer, or an attention and a scale for each."""
    one = 4 * HIDDEN**2
    shared, separate = adapter(shared=True), adapter()
    assert sum(p.numel() for p in shared.parameters()) == one + 3
    assert sum(p.numel() for p in separate.parameters()) == 3 * (one + 1)


def test_shared_weights_start_from_the_first_layer() -> None:
    """Law: `init = "base"` copies the attention of the first fused layer."""
    weights = facts().attention(3)
    assert weights is not None
    assert torch.equal(adapter(shared=True).blocks.at(3).query.weight, weights.query)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, f"^`every` must be from 1 to the base's {DEPTH} layers, not 0$"),
        ({"every": 13}, f"^`every` must be from 1 to the base's {DEPTH} layers, not 13$"),
        ({"every": 2, "layers": [0]}, "^`every` cannot be given together with `layers`$"),
        ({"layers": []}, "^`layers` must name at least one"),
        ({"scale": 0.0}, r"^`scale` must be above 0, not 0\.0$"),
        ({"scale": math.nan}, "^`scale` must be above 0, not nan$"),
        ({"dropout": 1.0}, r"^`dropout` must be from 0 up to 1, not 1\.0$"),
        ({"heads": 0}, "^`heads` must be at least 1, not 0$"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    """Law: the message starts with the option's name."""
    with pytest.raises(ValueError, match=words):
        adapter(**options)
