"""The one operation that is ours inside vLLM: at a fused layer's input, a sample for its own rows.

A batch of vLLM is flat: the new tokens of all requests behind each other. Before each forward pass
the worker says which stretch of it belongs to a request with a sample, and what that request
remembers of it; the operation then changes those stretches and touches no other. Rows without a
sample so keep their bits. It is an operation of torch's of its own, which a compiled graph calls as
it is; whether it was called at every fused layer is checked after each pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.library import Library
from vllm.utils.torch_utils import direct_register_custom_op

from safe_framework.core.injection import ActiveModality
from safe_framework.errors import InjectionError, SafeError


@attrs.frozen(eq=False)
class HearingRows:
    """A stretch of a batch that hears a sample.

    Attributes:
        sample: what it hears, in a call of one row.
        start: its first token in the batch.
        end: the token behind its last.
    """

    sample: ActiveModality
    start: int
    end: int


@attrs.define(eq=False)
class _Pass:
    """One forward pass: who hears in it, and at which layers they did."""

    rows: Sequence[HearingRows]
    fired: set[int] = attrs.field(factory=set)


_PASSES: dict[str, _Pass] = {}
"""By the key of the model whose pass it is; no entry where nobody hears."""


@contextmanager
def hearing(key: str, rows: Sequence[HearingRows], layers: Sequence[int]) -> Iterator[None]:
    """Within the block, the next pass of a model hears as ``rows`` says.

    Args:
        key: of the model.
        rows: of the batch; none for a pass that is the base's.
        layers: at which they must hear.

    Raises:
        InjectionError: a fused layer did not let them.
    """
    if not rows:
        yield
        return
    current = _PASSES[key] = _Pass(rows)
    try:
        yield
    finally:
        del _PASSES[key]
    if missed := [layer for layer in layers if layer not in current.fired]:
        raise InjectionError(
            f"requests with a sample were not heard at layers {missed}: the operation did not run",
            hint="start with --enforce-eager",
        )


def fuse_first(hidden: Tensor, layer: int, key: str) -> None:
    """Change what the first layer is given, in place.

    Args:
        hidden: of all new tokens, (tokens, hidden).
        layer: that is about to run.
        key: of the model.
    """
    if (current := _PASSES.get(key)) is None:
        return
    current.fired.add(layer)
    for row in current.rows:
        part = hidden[row.start : row.end]
        part.copy_(_fused(row, part, layer))


def fuse(hidden: Tensor, residual: Tensor, layer: int, key: str) -> None:
    """Change what a later layer is given, in place: what it reads is the sum of the two.

    Args:
        hidden: of all new tokens, what the layer before added last, (tokens, hidden).
        residual: what it was added to, (tokens, hidden).
        layer: that is about to run.
        key: of the model.
    """
    if (current := _PASSES.get(key)) is None:
        return
    current.fired.add(layer)
    for row in current.rows:
        part, rest = hidden[row.start : row.end], residual[row.start : row.end]
        part.copy_(_fused(row, part + rest, layer))
        rest.zero_()


def _fused(row: HearingRows, states: Tensor, layer: int) -> Tensor:
    return row.sample.apply_everywhere(states.unsqueeze(0), layer).squeeze(0)


def _nothing_first(hidden: Tensor, layer: int, key: str) -> None:
    """What tracing sees of ``fuse_first``."""


def _nothing(hidden: Tensor, residual: Tensor, layer: int, key: str) -> None:
    """What tracing sees of ``fuse``."""


_LIBRARY: Any = Library("safe_framework", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's own
direct_register_custom_op("fuse_first", fuse_first, ["hidden"], _nothing_first, target_lib=_LIBRARY)
direct_register_custom_op("fuse", fuse, ["hidden", "residual"], _nothing, target_lib=_LIBRARY)


def let_listen(layer: nn.Module, number: int, key: str) -> None:
    """Have a decoder layer call the operation before it runs; its weights and names stay.

    Args:
        layer: of vLLM, which is given positions, hidden states and what they are added to.
        number: of the layer in the base.
        key: of the model.

    Raises:
        SafeError: it is given something else.
    """
    kind: Any = type(layer)
    named = kind.forward.__code__.co_varnames[:4]
    if named != ("self", "positions", "hidden_states", "residual"):
        raise SafeError(f"vLLM's `{kind.__name__}` is given {', '.join(named)}: nothing known")

    class ListeningLayer(kind):  # type: ignore[misc]  # known only now
        """The same layer, at whose input samples enter."""

        def forward(
            self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **more: Any
        ) -> Any:
            """As the layer's own."""
            if residual is None:
                torch.ops.safe_framework.fuse_first(hidden_states, number, key)
            else:
                torch.ops.safe_framework.fuse(hidden_states, residual, number, key)
            return kind.forward(self, positions, hidden_states, residual, **more)

    layer.__class__ = ListeningLayer
