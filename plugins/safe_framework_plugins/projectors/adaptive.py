"""The spec's adaptive projector: a learned gate decides how many tokens a sample is worth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from safe_framework import Frames, Projector, Tokens
from safe_framework_plugins.projectors.resampler import ResamplerProjector

_OPEN = 0.5  # gates from here on keep their token


class AdaptiveProjector(Projector):
    """Up to ``max_tokens`` tokens, as many as the sample's gates keep open.

    Candidates x are made as ``resampler`` makes its tokens; each has a gate
    ``g = sigmoid(Linear(x) + opening)``, and a token is ``g * x``. In training all of them are
    given, so that every gate learns. In inference those with a gate of at least 0.5 are given,
    never none, and the batch is as short as its longest sample; what is kept has the values
    that it has in training.

    Nothing in a task's loss asks for few tokens. ``cost`` does: the gradient of
    ``cost * mean(g)`` is added to that of the loss.

    Args:
        frame_dim: width of the frames.
        hidden_size: width of the base's hidden states.
        max_tokens: the most tokens that it gives.
        cost: of an open gate in training; 0 for none.
        opening: what is added to each gate's score, so that training starts with open gates.
        dim: width inside the blocks.
        depth: how many blocks.
        heads: of attention; must divide ``dim``.
        dropout: after each half of a block, in training.

    Raises:
        ValueError: an option is out of its range.
    """

    kept: Tensor
    seen: Tensor

    def __init__(
        self,
        frame_dim: int,
        hidden_size: int,
        *,
        max_tokens: int = 32,
        cost: float = 0.01,
        opening: float = 1.0,
        dim: int = 256,
        depth: int = 1,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if max_tokens < 1:
            raise ValueError(f"`max_tokens` must be at least 1, not {max_tokens}")
        if not 0 <= cost < float("inf"):
            raise ValueError(f"`cost` must be at least 0 and finite, not {cost}")
        if not abs(opening) < float("inf"):
            raise ValueError(f"`opening` must be finite, not {opening}")
        self.cost = cost
        self.candidates = ResamplerProjector(
            frame_dim,
            hidden_size,
            tokens=max_tokens,
            dim=dim,
            depth=depth,
            heads=heads,
            dropout=dropout,
        )
        self.score = nn.Linear(hidden_size, 1)
        nn.init.constant_(self.score.bias, opening)
        self.register_buffer("kept", torch.zeros(()), persistent=False)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    @property
    def mean_tokens(self) -> float:
        """Mean count of open gates a sample, since training or evaluation was last entered."""
        return float(self.kept / self.seen.clamp_min(1))

    def train(self, mode: bool = True) -> AdaptiveProjector:
        """Switch, and count anew if that changes anything."""
        if mode != self.training:
            self.kept.zero_()
            self.seen.zero_()
        return super().train(mode)

    def forward(self, frames: Frames) -> Tokens:
        """Tokens (batch, up to max_tokens, hidden); a sample without a valid frame has none."""
        given = self.candidates(frames)
        gates = torch.sigmoid(self.score(given.values)).squeeze(-1)  # (batch, tokens)
        chosen = _chosen(gates.detach()) & given.mask
        self._count(chosen)
        if not self.training:
            return _packed(given.values * gates.unsqueeze(-1), chosen)
        if gates.requires_grad and self.cost:
            push = self.cost / gates.numel()
            gates.register_hook(lambda gradient: gradient + push)  # type: ignore[no-untyped-call]  # torch
        return Tokens(given.values * gates.unsqueeze(-1), given.mask)

    @torch.no_grad()
    def _count(self, chosen: Tensor) -> None:
        present = chosen.any(dim=1)
        self.kept += chosen.sum()
        self.seen += present.sum()


def _chosen(gates: Tensor) -> Tensor:
    """Where a gate is open, and the widest gate of each sample, (batch, tokens)."""
    widest = torch.zeros_like(gates, dtype=torch.bool)
    widest.scatter_(1, gates.argmax(dim=1, keepdim=True), True)
    return (gates >= _OPEN) | widest


def _packed(values: Tensor, chosen: Tensor) -> Tokens:
    """The chosen tokens in their order, moved to the front, and no longer than needed."""
    longest = max(int(chosen.sum(dim=1).max()), 1)
    order = torch.argsort(~chosen, dim=1, stable=True)[:, :longest]
    picked = values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
    return Tokens(picked, chosen.gather(1, order))
