"""Losses over a wide vocabulary, without the logits.

At 49 152 tokens and a hidden size of 576, logits and their gradients are most of what a training
step of a small base moves through memory. A loss needs two things of them: the log-sum of their
exponentials, and, for its gradient, the output embeddings' expected row ``E[W]`` under the softmax.
Both are gathered in one pass over chunks of the vocabulary, as attention does over keys (Dao et
al. 2022, arXiv:2205.14135).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import attrs
import torch
from torch import Tensor, nn

CHUNK_SIZE = 4096  # vocabulary entries at a time: their logits stay in a core's cache


@attrs.frozen(eq=False)
class SoftmaxStatistics:
    """The softmax over the vocabulary, as far as a divergence needs it.

    Attributes:
        log_sum: of the exponentials of the logits, in float64, (tokens,).
        embedding: mean of the output embeddings' rows under the softmax, (tokens, hidden).
    """

    log_sum: Tensor
    embedding: Tensor


@torch.no_grad()
def softmax_statistics(
    hidden: Tensor, head: nn.Linear, temperature: float | Tensor = 1.0
) -> SoftmaxStatistics:
    """The softmax of ``head(hidden) / temperature``, one chunk of the vocabulary at a time.

    Args:
        hidden: (tokens, hidden).
        head: the output embeddings.
        temperature: above 0; a number, or one for each token, (tokens, 1).
    """
    maximum = hidden.new_full((len(hidden), 1), -torch.inf)
    total, weighted = torch.zeros_like(maximum, dtype=torch.float64), torch.zeros_like(hidden)
    buffer = hidden.new_empty(len(hidden) * CHUNK_SIZE)  # reused for each chunk
    hidden = hidden / temperature
    for start in range(0, len(head.weight), CHUNK_SIZE):
        rows = head.weight[start : start + CHUNK_SIZE]
        logits = buffer[: len(hidden) * len(rows)].view(-1, len(rows))
        torch.mm(hidden, rows.mT, out=logits)
        if head.bias is not None:
            logits += head.bias[start : start + CHUNK_SIZE] / temperature
        higher = torch.maximum(maximum, logits.amax(-1, keepdim=True))
        shrink = (maximum - higher).exp_()
        weights = logits.sub_(higher).exp_()
        total = total * shrink + weights.sum(-1, keepdim=True)
        weighted.mul_(shrink).addmm_(weights, rows)
        maximum = higher
    return SoftmaxStatistics((maximum + total.log()).squeeze(-1), weighted / total.float())


def softmax_statistics_of_all(
    asked: Sequence[tuple[Tensor, float]], head: nn.Linear
) -> list[SoftmaxStatistics]:
    """Several such softmaxes in one pass over the vocabulary, whose weights are read but once.

    Args:
        asked: hidden states, (tokens, hidden), and temperature of each softmax.
        head: the output embeddings.
    """
    hidden = torch.cat([one for one, _ in asked])
    counts = [len(one) for one, _ in asked]
    each = hidden.new_tensor([temperature for _, temperature in asked])
    numbers = torch.tensor(counts, device=hidden.device)
    found = softmax_statistics(hidden, head, each.repeat_interleave(numbers).unsqueeze(-1))
    parts = torch.split(found.log_sum, counts), torch.split(found.embedding, counts)
    return [
        SoftmaxStatistics(log_sum, embedding) for log_sum, embedding in zip(*parts, strict=True)
    ]


def supports_chunked_loss(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether hidden states can be compared through these output embeddings.

    In lower precision the two expected rows would differ by less than their rounding.
    """
    return (
        type(head) is nn.Linear
        and head.weight.dtype == torch.float32
        and not any(parameter.requires_grad for parameter in head.parameters())
        and not torch.is_autocast_enabled(head.weight.device.type)
    )


def cross_entropy(
    hidden: Tensor, head: nn.Linear, targets: Tensor, found: SoftmaxStatistics
) -> Tensor:
    """Summed cross-entropy of ``head(hidden)``, a scalar whose gradient is for ``hidden`` alone.

    ``lse(W h) - (W h)_target``, with the gradient ``E[W] - W_target``.

    Args:
        hidden: (tokens, hidden).
        head: the output embeddings, which do not train.
        targets: token ids, (tokens,).
        found: the softmax at temperature 1.
    """
    fixed = hidden.detach()
    rows = head.weight[targets]
    logits = (fixed * rows).double().sum(-1)
    if head.bias is not None:
        logits = logits + head.bias[targets]
    value = (found.log_sum - logits).sum().float()
    return with_custom_gradient(value, hidden, found.embedding - rows)


def with_custom_gradient(value: Tensor, hidden: Tensor, gradient: Tensor) -> Tensor:
    """``value``, whose gradient for ``hidden`` is ``gradient``."""
    return value.detach() + ((hidden - hidden.detach()) * gradient.detach()).sum()
