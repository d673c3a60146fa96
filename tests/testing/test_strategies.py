"""The strategies draw what they say, hostile values among it."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_framework.testing import strategies
from safe_framework.utils.tensors import bitwise_equal


@given(st.data(), strategies.sizes(), strategies.sizes(6))
def test_a_mask_leaves_something_of_every_row(data, batch, length):
    """A mask has the shape that was asked for, and True in each row."""
    mask = data.draw(strategies.masks(batch, length))
    assert mask.shape == (batch, length)
    assert mask.any(1).all()


@given(strategies.frames(3), strategies.tokens(5, batch=2))
def test_frames_and_tokens_are_finite_and_of_their_shape(frames, tokens):
    """Numbers are finite; masks have the first two axes of the values."""
    assert frames.values.shape == (*frames.mask.shape, 3)
    assert tokens.values.shape == (*tokens.mask.shape, 5)
    assert len(tokens.values) == 2
    assert torch.isfinite(frames.values).all()
    assert torch.isfinite(tokens.values).all()


def test_what_is_hostile():
    """NaN, both infinities, negative zero and denormals are among the hostile values."""
    drawn = torch.tensor(strategies.HOSTILE)
    assert drawn.isnan().any()
    assert {math.inf, -math.inf} < set(drawn.tolist())
    assert ((drawn == 0) & drawn.signbit()).any()
    assert ((drawn != 0) & (drawn.abs() < torch.finfo().tiny)).any()


@given(strategies.frames(3), strategies.hostile_values())
def test_only_masked_positions_are_spoilt(frames, hostile):
    """Values under the mask keep their bits, and the others are all hostile."""
    wrong = strategies.spoilt(frames.values, frames.mask, hostile)
    assert bitwise_equal(wrong[frames.mask], frames.values[frames.mask])
    expected = torch.full_like(wrong[~frames.mask], hostile)
    assert bitwise_equal(wrong[~frames.mask], expected)


@given(strategies.base_facts(layers=2))
def test_facts_agree_with_themselves(facts):
    """Heads divide the hidden size, and weights are the same whenever they are asked for."""
    assert facts.hidden_size % facts.num_heads == 0
    first, again = facts.attention(1), facts.attention(1)
    assert (first is None) == (again is None)
    if first is not None:
        assert first.query.shape == (facts.hidden_size, facts.hidden_size)
        assert torch.equal(first.query, again.query)
