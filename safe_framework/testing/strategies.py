"""Hypothesis strategies for what flows between plugins.

Sizes and masks are drawn one by one, numbers by a seed: a failure shrinks to the smallest shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from safe_framework.interfaces.types import AttentionWeights, BaseFacts, Frames, Tokens

HOSTILE = (float("nan"), float("inf"), -float("inf"), -0.0, 1e-40, -1e-40, 3.4e38, -3.4e38)
"""Numbers that break careless arithmetic: 1e-40 is denormal in 32 bits, 3.4e38 near their end."""


def seeds() -> SearchStrategy[int]:
    """Of a random generator."""
    return st.integers(0, 2**16)


def sizes(most: int = 4) -> SearchStrategy[int]:
    """How long an axis is, at least 1."""
    return st.integers(1, most)


def dtypes() -> SearchStrategy[torch.dtype]:
    """What a model's weights may be; float16 stands for both types of 16 bits.

    Products of bfloat16 end the process on a processor that announces AMX but may not use it, as
    some virtual machines have.
    """
    return st.sampled_from([torch.float32, torch.float16, torch.float64])


def hostile_values() -> SearchStrategy[float]:
    """NaN, infinities, negative zero, denormals, and numbers that overflow when squared."""
    return st.sampled_from(HOSTILE)


@st.composite
def masks(draw: DrawFn, batch: int, length: int) -> Tensor:
    """(batch, length), with True at least once in every row."""
    row = st.lists(st.booleans(), min_size=length, max_size=length).filter(any)
    return torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)))


@st.composite
def tensors(draw: DrawFn, *shape: int) -> Tensor:
    """Finite numbers of one of several magnitudes, some of them 0, -0 or denormal."""
    generator = torch.Generator().manual_seed(draw(seeds()))
    values = draw(st.sampled_from([1.0, 0.01, 30.0])) * torch.randn(shape, generator=generator)
    if draw(st.booleans()):
        tiny = torch.tensor([0.0, -0.0, 1e-40, -1e-40])
        places = torch.rand(shape, generator=generator) < 0.2
        values[places] = tiny[torch.randint(4, (int(places.sum()),), generator=generator)]
    return values


@st.composite
def frames(draw: DrawFn, dim: int, *, most: int = 4) -> Frames:
    """Frames of up to ``most`` samples, some of them padding."""
    batch, length = draw(sizes(most)), draw(sizes(most + 2))
    return Frames(draw(tensors(batch, length, dim)), draw(masks(batch, length)))


@st.composite
def tokens(draw: DrawFn, hidden: int, *, batch: int | None = None, most: int = 4) -> Tokens:
    """Tokens of ``batch`` samples (up to ``most`` if None), some of them masked."""
    rows = draw(sizes(most)) if batch is None else batch
    count = draw(sizes(most))
    return Tokens(draw(tensors(rows, count, hidden)), draw(masks(rows, count)))


@st.composite
def base_facts(
    draw: DrawFn, *, heads: Sequence[int] = (1, 2, 4), head_dim: int = 4, layers: int = 3
) -> BaseFacts:
    """Facts of a base whose attention's weights can be had, or cannot.

    Args:
        draw: given by Hypothesis.
        heads: attention heads to choose from.
        head_dim: width of one.
        layers: how many the base has.
    """
    count, readable, seed = draw(st.sampled_from(heads)), draw(st.booleans()), draw(seeds())
    hidden = count * head_dim

    def attention(layer: int) -> AttentionWeights | None:
        """A layer's random projections, always the same; None if none can be read."""
        generator = torch.Generator().manual_seed(seed + layer)
        drawn = torch.randn(4, hidden, hidden, generator=generator) / hidden**0.5
        query, key, value, output = (part.clone() for part in drawn)
        return AttentionWeights(query, key, value, output, count) if readable else None

    return BaseFacts(hidden, layers, count, attention)


def spoilt(values: Tensor, mask: Tensor, hostile: float) -> Tensor:
    """A copy that holds ``hostile`` wherever the mask is False.

    Args:
        values: (batch, length, any).
        mask: (batch, length).
        hostile: such as NaN.
    """
    return values.masked_fill(~mask.unsqueeze(-1), hostile)
