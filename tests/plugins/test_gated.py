"""Cross-attention behind a gate that depends on text and sample."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.core.model import SafeModel
from safe_framework.interfaces.types import Tokens
from safe_framework_plugins.fusion.gated import GatedFusion
from tests.support.fusions import learned
from tests.support.toys import HIDDEN, llama


def fresh(**options: Any) -> GatedFusion:
    """A new one at the first layer of the tiny Llama, in evaluation mode."""
    torch.manual_seed(0)
    return GatedFusion(SafeModel(llama()).facts(), **{"layers": [0]} | options).eval()


def adapter(**options: Any) -> GatedFusion:
    """The same, after something has been learned."""
    fusion = learned(fresh(**options))
    assert isinstance(fusion, GatedFusion)
    return fusion


def hidden() -> Tensor:
    """Hidden states of two rows."""
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(0))


def tokens(seed: int = 1) -> Tokens:
    """Three tokens for each row, of which the last is masked."""
    values = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(seed))
    return Tokens(values, torch.tensor([[True, True, False]] * 2))


def gate(fusion: GatedFusion, given: Tokens) -> Tensor:
    """Its gate at each position."""
    return fusion.gate(hidden(), fusion.remember(given), 0)


def test_the_gate_is_between_0_and_1() -> None:
    """Law: there is one gate for each position, and it is a share."""
    seen = gate(adapter(), tokens())
    assert seen.shape == (2, 5, 1)
    assert ((seen > 0) & (seen < 1)).all()


def test_it_depends_on_the_text_and_on_the_sample() -> None:
    """Law: positions differ within a row, and another sample gives other gates."""
    fusion = adapter()
    seen, other = gate(fusion, tokens()), gate(fusion, tokens(seed=2))
    assert len(seen[0].unique()) == 5
    assert not (seen == other).any()


def test_masked_tokens_are_not_in_the_mean() -> None:
    """Law: the sample's part is the mean of the tokens that are not masked."""
    fusion, given = adapter(), tokens()
    left = Tokens(given.values[:, :2].flip(1), given.mask[:, :2])
    torch.testing.assert_close(gate(fusion, left), gate(fusion, given))


def test_the_gate_scales_the_attention() -> None:
    """Law: the delta is the gate times what the attention gives."""
    fusion = adapter()
    memory = fusion.remember(tokens())
    expected = gate(fusion, tokens()) * fusion.blocks.attend(hidden(), memory, 0)
    assert torch.equal(fusion(hidden(), memory, 0), expected)


def test_it_can_shut() -> None:
    """Law: a gate that learned to stay shut lets nothing through."""
    fusion = adapter()
    with torch.no_grad():
        fusion.gates["0"].out.weight.zero_()
        fusion.gates["0"].out.bias.fill_(-200)
    assert not fusion(hidden(), fusion.remember(tokens()), 0).any()


def test_the_gate_has_a_gradient_to_both_of_its_inputs() -> None:
    """Law: hidden states and tokens learn through the gate: nothing is detached."""
    fusion, states, given = adapter(), hidden().requires_grad_(), tokens()
    given.values.requires_grad_()
    fusion.gate(states, fusion.remember(given), 0).sum().backward()
    assert states.grad is not None
    assert states.grad.any(-1).all()
    assert given.values.grad is not None
    assert torch.equal(given.values.grad.any(-1), given.mask)


def test_a_fresh_gate_is_half_open() -> None:
    """Law: training starts with gates around a half, from which they can move either way."""
    seen = gate(fresh(), tokens())
    assert ((seen > 0.2) & (seen < 0.8)).all()


def test_by_default_it_is_in_the_middle() -> None:
    """Law: the default layer lies above layers that mix a position with its past."""
    facts = SafeModel(llama(num_hidden_layers=6)).facts()
    assert GatedFusion(facts).layers == (3,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate_size": 0}, "^`gate_size` must be at least 1, not 0$"),
        ({"dropout": 1.0}, r"^`dropout` must be from 0 up to 1, not 1\.0$"),
        ({"dropout": math.nan}, "^`dropout` must be from 0 up to 1, not nan$"),
        ({"heads": 0}, "^`heads` must be at least 1, not 0$"),
        ({"layers": [2.5]}, "^`layers` must hold whole numbers or fractions"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    """Law: the message starts with the option's name."""
    with pytest.raises(ValueError, match=words):
        fresh(**options)
