"""Attention with its projections folded into keys and values, against attention without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_framework.attention import cross_attention
from safe_framework.core.model import SafeModel
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.types import Memory, Tokens
from tests.support.fusions import VARIANTS, fresh, learned
from tests.support.tolerance import ATTENTION, assert_same_sums
from tests.support.toys import HIDDEN, llama

LENGTH, COUNT = 5, 3


def adapter(variant: str) -> FusionAdapter:
    """A trained one, of one head, whose width leaves room for a few tokens."""
    facts = SafeModel(llama()).facts()
    return learned(fresh(variant, facts, heads=1, init="random"), spread=0.2)


def hidden() -> Tensor:
    """Hidden states of two rows."""
    return torch.randn(2, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(0))


def tokens() -> Tokens:
    """Tokens of two rows, of which the second's last is masked."""
    values = torch.randn(2, COUNT, HIDDEN, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, COUNT, dtype=torch.bool)
    mask[1, 2:] = False
    return Tokens(values, mask)


def is_folded(memory: Memory) -> bool:
    """Whether a memory holds folded keys."""
    return any(name.startswith("folded_keys") for name in memory.tensors)


def plainly(fusion: FusionAdapter, memory: Memory, layer: int) -> Tensor:
    """The delta of the same memory without what was folded."""
    kept = {name: t for name, t in memory.tensors.items() if not name.startswith("folded")}
    return fusion(hidden(), Memory(kept, memory.mask), layer)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "dora" not in name])
def test_folded_is_the_same_attention(variant: str) -> None:
    """Law: with the projections folded in, a delta is what it is without, up to rounding."""
    fusion = adapter(variant)
    with torch.no_grad():
        memory = fusion.remember(tokens())
        assert is_folded(memory)
        for layer in fusion.layers:
            delta = fusion(hidden(), memory, layer)
            assert delta.any()
            assert_same_sums(delta, plainly(fusion, memory, layer), ATTENTION)


@pytest.mark.parametrize("variant", ["lora", "cross_attention"])
def test_observers_see_the_same_shares(variant: str) -> None:
    """Law: observers are given the shares of the tokens, folded or not."""
    fusion, reported = adapter(variant), list[Tensor]()
    with torch.no_grad(), cross_attention.observed(reported.append):
        memory = fusion.remember(tokens())
        fusion(hidden(), memory, 0)
        plainly(fusion, memory, 0)
    assert is_folded(memory)
    assert reported[0].shape == (2, 1, LENGTH, COUNT)
    assert_same_sums(reported[0], reported[1], ATTENTION)


@pytest.mark.parametrize("variant", ["lora", "cross_attention"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_folded_scores_are_float32_under_autocast(variant: str, dtype: torch.dtype) -> None:
    """Law: autocast changes neither what is folded nor what is made of it."""
    fusion = adapter(variant)
    with torch.no_grad():
        memory = fusion.remember(tokens())
        expected = fusion(hidden(), memory, 0)
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(fusion(hidden(), memory, 0), expected)


def test_gradients_are_never_folded_away() -> None:
    """Law: where a gradient is wanted nothing folded is used, so the projections learn."""
    fusion = adapter("lora")
    assert not is_folded(fusion.remember(tokens()))
    with torch.no_grad():
        memory = fusion.remember(tokens())
    fusion(hidden(), memory, 0).sum().backward()  # type: ignore[no-untyped-call]
    learning = {name for name, p in fusion.named_parameters() if p.grad is not None}
    assert {name for name in learning if ".0.query.lora_" in name}


def test_training_is_never_folded() -> None:
    """Law: in training mode, where dropout acts between the projections, nothing is folded."""
    with torch.no_grad():
        assert not is_folded(adapter("lora").train().remember(tokens()))


def _hooked(projection: nn.Module) -> None:
    next(m for m in projection.modules() if type(m) is nn.Linear).register_forward_pre_hook(
        lambda *_: None
    )


def _disabled(projection: Any) -> None:
    projection.enable_adapters(False)


def _own_forward(projection: Any) -> None:
    projection.forward = projection.forward


@pytest.mark.parametrize("change", [_hooked, _disabled, _own_forward])
@pytest.mark.parametrize("name", ["query", "output"])
def test_a_projection_that_does_more_is_called(change: Any, name: str) -> None:
    """Law: what hooks, replaces or disables a part of a projection acts as it always did."""
    fusion: Any = adapter("lora")
    change(getattr(fusion.blocks.at(0), name))
    with torch.no_grad():
        memory = fusion.remember(tokens())
        assert "folded_keys.0" not in memory.tensors
        assert is_folded(memory)  # the other layer's
        assert torch.equal(fusion(hidden(), memory, 0), plainly(fusion, memory, 0))


def test_decomposed_weights_are_called() -> None:
    """Law: a projection that is more than a sum of matrices is called as it is."""
    with torch.no_grad():
        assert not is_folded(adapter("lora, dora").remember(tokens()))


def test_what_is_kept_is_no_larger_than_the_projections() -> None:
    """Law: of more tokens or rows than a head is wide, nothing is folded."""
    fusion, many = adapter("cross_attention"), HIDDEN // 2
    with torch.no_grad():
        for rows, folds in ((2, True), (3, False)):
            mask = torch.ones(rows, many, dtype=torch.bool)
            memory = fusion.remember(Tokens(torch.ones(rows, many, HIDDEN), mask))
            assert is_folded(memory) == folds


def test_copies_of_a_row_take_its_folded_part_along() -> None:
    """Law: chosen rows of a folded memory give chosen rows of the delta."""
    fusion, rows = adapter("lora"), torch.tensor([1, 1, 0])
    with torch.no_grad():
        memory = fusion.remember(tokens())
        expected = fusion(hidden(), memory, 0)[rows]
        seen = fusion(hidden()[rows], memory.rows(rows), 0)
    assert_same_sums(seen, expected, ATTENTION)
