"""The attention that fusion adapters share, and the layers that their options name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.attention import CrossAttention, attend, unit_rms
from safe_framework.attention.folded import CLAMP
from safe_framework.core.model import SafeModel
from safe_framework.interfaces.fusion import chosen_layers
from safe_framework.interfaces.types import BaseFacts
from tests.support.tolerance import ATTENTION, assert_same_sums
from tests.support.toys import HIDDEN, gpt2, llama

ROWS, HEADS, LENGTH, COUNT, DIM = 2, 3, 5, 4, 8


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and a mask that leaves out the second row's last two tokens."""
    mask = torch.ones(ROWS, COUNT, dtype=torch.bool)
    mask[1, 2:] = False
    query, key, value = (
        spread * drawn(ROWS, HEADS, n, DIM, seed=seed)
        for seed, n in enumerate((LENGTH, COUNT, COUNT))
    )
    return query, key, value, mask


def test_it_is_scaled_dot_product_attention() -> None:
    """Law: below the clamp, it is what torch computes of the same inputs and mask."""
    query, key, value, mask = inputs()
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask[:, None, None]
    )
    assert_same_sums(attend(query, key, value, mask), expected, ATTENTION)


def test_a_masked_token_has_no_share_at_all() -> None:
    """Law: a masked token's share is exactly zero, beside the lowest score that there is."""
    query, key, value, mask = inputs(spread=1e3)
    changed = value.masked_fill(~mask[:, None, :, None], 1e30)
    assert torch.equal(attend(query, key, value, mask), attend(query, key, changed, mask))


def test_scores_are_clamped() -> None:
    """Law: two tokens whose scores lie beyond the clamp share alike."""
    query, value = torch.ones(1, 1, 1, 1), torch.tensor([1.0, 3.0])[None, None, :, None]
    key = torch.tensor([2 * CLAMP, 1e9])[None, None, :, None]
    shared = attend(query, key, value, torch.ones(1, 2, dtype=torch.bool))
    assert shared.item() == 2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """Law: what comes in 16 bits is attended to in float32, under autocast too."""
    query, key, value, mask = (tensor.to(dtype) for tensor in inputs())
    mask = mask.bool()
    expected = attend(query.float(), key.float(), value.float(), mask)
    assert torch.equal(attend(query, key, value, mask), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend(query, key, value, mask), expected)


def test_attending_to_nothing_takes_a_share() -> None:
    """Law: a head whose nothing scores high gives zero; one whose nothing scores low, all."""
    query, key, value, mask = inputs()
    nothing = torch.tensor([1e9, -1e9, 0.0])
    given = attend(query, key, value, mask, nothing=nothing)
    without = attend(query, key, value, mask)
    assert not given[:, 0].any()
    torch.testing.assert_close(given[:, 1], without[:, 1])
    assert (given[:, 2].norm(dim=-1) < without[:, 2].norm(dim=-1)).all()


def facts(base: Any) -> BaseFacts:
    """What an adapter may know of a tiny base."""
    return SafeModel(base).facts()


def test_projections_are_the_bases_where_they_are_plain() -> None:
    """Law: `init = "base"` copies all four projections; `silent` then empties the output."""
    given = facts(llama())
    weights = given.attention(1)
    assert weights is not None
    loud = CrossAttention(given, 1, silent=False)
    assert loud.from_base
    for name in ("query", "key", "value", "output"):
        assert torch.equal(getattr(loud, name).weight, getattr(weights, name))
    assert not CrossAttention(given, 1).output.weight.any()
    assert not CrossAttention(given, 1, init="random").from_base
    assert not CrossAttention(facts(gpt2()), 1).from_base


def gemma() -> Any:
    """A tiny Gemma 3, whose norms multiply with one more than their weight."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=40, hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, pad_token_id=0,
    )  # fmt: skip
    return Gemma3ForCausalLM(config)


@pytest.mark.parametrize("base", [llama, gemma])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_layers_own_norm_is_in_the_projections(base: Any, spread: float) -> None:
    """Law: of a state at unit scale, they give what the layer's norm and projection give."""
    model = base()
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.input_layernorm.weight.add_(spread * drawn(HIDDEN))
    weights, hidden = facts(model).attention(0), drawn(1, 3, HIDDEN, seed=1)
    assert weights is not None
    expected = layer.self_attn.q_proj(layer.input_layernorm(hidden))
    seen = unit_rms(hidden) @ weights.query.T
    assert seen.any()
    assert_same_sums(seen, expected, 2 * HIDDEN)


def test_norms_make_the_scale_irrelevant() -> None:
    """Law: normalised hidden states and tokens may be of any size; plain ones may not."""
    torch.manual_seed(0)
    hidden, tokens, mask = drawn(2, 3, HIDDEN), drawn(2, 4, HIDDEN, seed=1), torch.ones(2, 4).bool()
    for norm in (True, False):
        block = CrossAttention(
            facts(llama()), 0, silent=False, norm_query=norm, norm_tokens=norm
        ).eval()
        once = block(hidden, *block.keys_and_values(tokens), mask)
        larger = block(3 * hidden, *block.keys_and_values(3 * tokens), mask)
        assert torch.allclose(once, larger, rtol=1e-4, atol=1e-4) == norm


def test_dropout_acts_in_training_alone() -> None:
    """Law: shares are dropped in training, and never otherwise."""
    block = CrossAttention(facts(llama()), 0, silent=False, dropout=0.5)
    hidden, mask = drawn(2, 3, HIDDEN), torch.ones(2, 4).bool()
    key, value = block.keys_and_values(drawn(2, 4, HIDDEN, seed=1))
    assert not torch.equal(block(hidden, key, value, mask), block(hidden, key, value, mask))
    block.eval()
    assert torch.equal(block(hidden, key, value, mask), block(hidden, key, value, mask))


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([0], (0,)),
        ([-1, 0, 11, 0], (0, 11)),
        ([0.5], (6,)),
        ([0.25, 0.5, 0.75], (3, 6, 9)),
        ([0.999, 2, -2], (2, 10, 11)),
    ],
)
def test_layers_are_named_by_number_or_by_depth(
    layers: Sequence[int | float], found: tuple[int, ...]
) -> None:
    """Law: numbers count from either end, fractions are parts of the depth."""
    assert chosen_layers(layers, 12) == found


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "^`layers` must name at least one decoder layer$"),
        ([12], r"^`layers` must be between -12 and 11, not \[12\]$"),
        ([0, -13], r"^`layers` must be between -12 and 11, not \[0, -13\]$"),
        ([1.0], r"^`layers` must hold whole numbers or fractions between 0 and 1, not 1\.0$"),
        ([0, 0.0], r"^`layers` must hold whole numbers or fractions .* not 0\.0$"),
        ([float("nan")], r"^`layers` must hold whole numbers or fractions .* not nan$"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(layers: Sequence[int | float], words: str) -> None:
    """Law: the message starts with the option's name, and says what it may be."""
    with pytest.raises(ValueError, match=words):
        chosen_layers(layers, 12)
