"""Projections as the sum of their parts, against PEFT's own calls of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from safe_framework.attention.folded import FactoredMatrix, LowRankFactor
from safe_framework.core.model import SafeModel
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.types import Tokens
from tests.support.fusions import fresh, learned
from tests.support.tolerance import ATTENTION, assert_same_sums
from tests.support.toys import HIDDEN, llama

ROWS, LENGTH, COUNT = 2, 5, 3
TARGETS = ("query", "key", "value")


def adapter(variant: str = "lora", **options: Any) -> FusionAdapter:
    """A trained one, in training mode."""
    return learned(fresh(variant, SafeModel(llama()).facts(), **options), spread=0.1).train()


def called(fusion: Any) -> Any:
    """The same adapter, whose projections are called, since something is hooked to them."""
    for layer in fusion.layers:
        for name in ("query", "output"):
            getattr(fusion.blocks.at(layer), name).register_forward_hook(lambda *_: None)
    return fusion


def delta(fusion: FusionAdapter) -> Tensor:
    """What it gives to hidden states that are the same every time."""
    draws = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, LENGTH, HIDDEN, generator=draws).requires_grad_()
    values = torch.randn(ROWS, COUNT, HIDDEN, generator=draws)
    memory = fusion.remember(Tokens(values, torch.ones(ROWS, COUNT, dtype=torch.bool)))
    return fusion(hidden, memory, 0)


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("lora", {}),
        ("lora", {"targets": TARGETS, "alpha": 3.0}),
        ("lora", {"targets": ()}),
        ("lora, rslora", {}),
        ("lora, dora", {}),
        ("multilayer", {}),
    ],
)
def test_sums_are_what_the_projections_give(variant: str, options: dict[str, Any]) -> None:
    """Law: deltas and gradients are those of projections that are called."""
    summed, whole = adapter(variant, **options), called(adapter(variant, **options))
    given, expected = delta(summed), delta(whole)
    assert_same_sums(given, expected, ATTENTION)
    given.square().sum().backward()  # type: ignore[no-untyped-call]
    expected.square().sum().backward()  # type: ignore[no-untyped-call]
    for one, other in zip(summed.parameters(), whole.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            assert_same_sums(one.grad, other.grad, 2 * ATTENTION)


def work(fusion: FusionAdapter) -> int:
    """Floating-point operations of products, forward and back."""
    with FlopCounterMode(display=False) as counter:
        delta(fusion).sum().backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops()


def test_nothing_is_multiplied_with_zeros() -> None:
    """Law: the output's frozen zeros take part in no product, on the way there or back."""
    forward = 2 * ROWS * LENGTH * HIDDEN * HIDDEN
    assert work(called(adapter())) - work(adapter()) == 2 * forward


def test_a_merged_output_is_used() -> None:
    """Law: once PEFT has written a pair into the zeros, these are multiplied with."""
    fusion: Any = adapter().eval()
    expected = delta(fusion)
    for layer in fusion.layers:
        fusion.blocks.at(layer).output.merge()
    assert delta(fusion).any()
    assert_same_sums(delta(fusion), expected, ATTENTION)


def test_dropout_acts_in_training_and_only_there() -> None:
    """Law: with dropout a projection is called while it trains, and is a sum when it does not."""
    fusion = adapter(dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(delta(fusion), delta(fusion))
    assert torch.equal(delta(fusion.eval()), delta(adapter().eval()))


def test_a_matrix_alone_and_with_pairs() -> None:
    """Law: the parts give what their sum does, and transposed what its transpose does."""
    draws = torch.Generator().manual_seed(0)
    full, up, down = (torch.randn(shape, generator=draws) for shape in ((4, 3), (4, 2), (2, 3)))
    pairs = (LowRankFactor(up, down, 0.5), LowRankFactor(up, down, 2.0))
    values, others = torch.randn(5, 3, generator=draws), torch.randn(5, 4, generator=draws)
    for whole, matrix in (
        (FactoredMatrix(full), full),
        (FactoredMatrix(full, pairs), full + 2.5 * up @ down),
    ):
        assert_same_sums(whole(values), values @ matrix.T, HIDDEN)
        assert_same_sums(whole.transposed()(others), others @ matrix, HIDDEN)
    assert torch.equal(
        FactoredMatrix(full, full_is_zero=True)(values), FactoredMatrix(full)(values)
    )
