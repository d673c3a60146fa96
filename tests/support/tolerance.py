"""How far apart two results may be of the same sums, added in another order.

A sum of n products is off by at most ``n * eps / 2`` times the sum of their magnitudes, in whatever
order they are added (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1),
so two orders of it are at most ``n * eps`` of it apart. Processors choose the order by the shapes
of a call. Where sums are made of sums, their lengths add up. What is compared does not show the
magnitudes that were added: its largest element stands for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.support.toys import HIDDEN, LAYERS, VOCABULARY

ATTENTION = 6 * HIDDEN
"""Length of all sums on the way through a block of attention: a norm, queries and keys, scores,
values, shares and the output, none of them longer than a hidden state in these tests."""
FORWARD = LAYERS * (ATTENTION + 6 * HIDDEN) + HIDDEN + VOCABULARY
"""Through a toy base: in each layer attention, a norm and two matrices that are at most four times
as wide as a hidden state; at the end the output embeddings and a softmax."""
BACKWARD = 2 * FORWARD
"""To a gradient of a toy base's outputs, which goes the same way back."""


def rounding(terms: int, scale: float | Tensor = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """How far apart two orders of sums may be.

    Args:
        terms: length of all sums on a value's way, added up.
        scale: the sum of the magnitudes that are added, or a tensor whose largest stands for it.
        dtype: in which they are added.
    """
    if isinstance(scale, Tensor):
        scale = scale.detach().abs().max().item() if scale.numel() else 0.0
    return terms * torch.finfo(dtype).eps * scale


def assert_same_sums(
    seen: Any, expected: Any, terms: int, *, dtype: torch.dtype | None = None
) -> None:
    """Assert that tensors, or nested ones, differ by nothing but the order of their sums.

    Args:
        seen: what is tested.
        expected: the same in another order; of the same shapes and dtypes.
        terms: length of all sums on a value's way, added up.
        dtype: in which they are added; by default that of the tensors.
    """
    if isinstance(expected, Mapping):
        assert seen.keys() == expected.keys()
        seen, expected = list(seen.values()), [expected[key] for key in seen]
    if isinstance(expected, Sequence):
        for one, other in zip(seen, expected, strict=True):
            assert_same_sums(one, other, terms, dtype=dtype)
        return
    allowed = rounding(terms, expected, dtype or expected.dtype)
    torch.testing.assert_close(seen, expected, rtol=0, atol=allowed)
