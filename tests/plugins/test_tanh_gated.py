"""Flamingo's gated cross-attention with its feed-forward."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, relu

from safe_framework.core.model import SafeModel
from safe_framework.interfaces.types import Tokens
from safe_framework_plugins.fusion.tanh_gated import TanhGatedFusion
from tests.support.toys import HIDDEN, llama


def adapter(attention: float = 0.0, feed_forward: float = 0.0, **options: Any) -> TanhGatedFusion:
    """One at the first layer of the tiny Llama, with its gates before the tanh."""
    torch.manual_seed(0)
    facts = SafeModel(llama()).facts()
    fusion = TanhGatedFusion(facts, **{"layers": [0], "expansion": 3} | options).eval()
    with torch.no_grad():
        fusion.blocks["0"].attention_gate.fill_(attention)
        fusion.blocks["0"].feed_forward_gate.fill_(feed_forward)
    return fusion


def hidden() -> Tensor:
    """Hidden states of two rows."""
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(0))


def tokens(seed: int = 1) -> Tokens:
    """Three tokens for each row."""
    values = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(seed))
    return Tokens(values, torch.ones(2, 3, dtype=torch.bool))


def delta(fusion: TanhGatedFusion, seed: int = 1) -> Tensor:
    """What it proposes at the first layer."""
    return fusion(hidden(), fusion.remember(tokens(seed)), 0)


def test_it_computes_its_equation() -> None:
    """Law: two residual steps, the second from where the first has led, each behind its gate."""
    fusion = adapter(0.7, -0.4)
    given = fusion.attention.attend(layer_norm(hidden(), (HIDDEN,)), fusion.remember(tokens()), 0)
    attended = torch.tensor(0.7).tanh() * given
    wide, narrow = fusion.blocks["0"].feed_forward[1], fusion.blocks["0"].feed_forward[3]
    inner = relu(layer_norm(hidden() + attended, (HIDDEN,)) @ wide.weight.T) ** 2
    fed = torch.tensor(-0.4).tanh() * (inner @ narrow.weight.T)
    torch.testing.assert_close(delta(fusion), attended + fed)


def test_each_gate_opens_its_own_part() -> None:
    """Law: the sample enters through the first gate; the second alone adds the text's part."""
    attended, fed = adapter(attention=1.0), adapter(feed_forward=1.0)
    assert not torch.equal(delta(attended, seed=1), delta(attended, seed=2))
    assert delta(fed).any()
    assert torch.equal(delta(fed, seed=1), delta(fed, seed=2))


def test_gates_are_bounded() -> None:
    """Law: however far a gate has been trained, it lets through once what lies behind it."""
    torch.testing.assert_close(delta(adapter(1e3, 1e3)), delta(adapter(1e6, 1e6)))


def test_a_fresh_adapter_starts_by_its_gates() -> None:
    """Law: at a fresh start the two gates, and they alone, have a gradient."""
    fusion = adapter()
    (delta(fusion) * torch.randn(2, 5, HIDDEN)).sum().backward()
    moved = {name for name, p in fusion.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"blocks.0.attention_gate", "blocks.0.feed_forward_gate"}


def test_expansion_is_the_width_of_the_feed_forward() -> None:
    """Law: attention, two norms, two gates and a feed-forward of that width, all trained."""
    for expansion in (1, 4):
        sizes = [p.numel() for p in adapter(expansion=expansion).parameters() if p.requires_grad]
        assert sum(sizes) == (4 + 2 * expansion) * HIDDEN**2 + 4 * HIDDEN + 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"expansion": 0}, "^`expansion` must be at least 1, not 0$"),
        ({"heads": 0}, "^`heads` must be at least 1, not 0$"),
        ({"layers": [7]}, "^`layers` must be between -2 and 1"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    """Law: the message starts with the option's name."""
    with pytest.raises(ValueError, match=words):
        adapter(**options)
