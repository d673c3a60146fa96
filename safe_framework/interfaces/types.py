"""What flows from a sample to a decoder layer, and the names of its axes.

Notation used in every annotation:

========  ==========================================================
batch     samples that are present (absent ones never reach a plugin)
frames    time steps, patches or regions that an encoder gives
dim       width of one frame
tokens    positions that a projector gives to fusion
hidden    width of the base model's hidden states
length    text positions
========  ==========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, TypeVar

import attrs
import torch
from torch import Tensor

_Masked = TypeVar("_Masked", bound="_Sequence")


@attrs.frozen(eq=False)
class _Sequence:
    values: Tensor
    mask: Tensor

    def rows(self: _Masked, index: Tensor) -> _Masked:
        """The samples at ``index``, in its order."""
        return type(self)(self.values[index], self.mask[index])


@attrs.frozen(eq=False)
class Frames(_Sequence):
    """What an encoder gives.

    Attributes:
        values: features, (batch, frames, dim).
        mask: True where a frame is real and False where it is padding, (batch, frames).
    """

    values: Annotated[Tensor, "batch frames dim"]
    mask: Annotated[Tensor, "batch frames"]


@attrs.frozen(eq=False)
class Tokens(_Sequence):
    """What a projector gives.

    Attributes:
        values: tokens in the base's hidden size, (batch, tokens, hidden).
        mask: True where fusion may attend, (batch, tokens).
    """

    values: Annotated[Tensor, "batch tokens hidden"]
    mask: Annotated[Tensor, "batch tokens"]


@attrs.frozen(eq=False)
class Memory:
    """What a fusion adapter keeps of the tokens for a whole call, such as keys and values.

    Attributes:
        tensors: anything the adapter will need, each with the samples along its first axis.
        mask: True where the adapter may attend, (batch, tokens).
    """

    tensors: Mapping[str, Tensor]
    mask: Annotated[Tensor, "batch tokens"]

    def to(self, device: torch.device) -> Memory:
        """The same memory on ``device``."""
        moved = {name: t.to(device) for name, t in self.tensors.items()}
        return Memory(moved, self.mask.to(device))

    def rows(self, index: Tensor) -> Memory:
        """The samples at ``index``, in its order; repeated indices repeat a sample."""
        return Memory({name: t[index] for name, t in self.tensors.items()}, self.mask[index])


@attrs.frozen(eq=False)
class BaseFacts:
    """What a fusion adapter may know of the base model.

    Attributes:
        hidden_size: width of its hidden states.
        num_layers: how many decoder layers it has.
        num_heads: attention heads of a layer.
        attention: gives copies of a layer's attention projections, or None where that layer's
            attention is not made of four plain ones.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    attention: Callable[[int], AttentionWeights | None] = lambda layer: None


@attrs.frozen(eq=False)
class AttentionWeights:
    """Copies of one base layer's attention projections, grouped key and value heads repeated.

    The first three expect an input of unit root mean square: the scale of the layer's own
    normalisation is multiplied in.

    Attributes:
        query: (heads * head_dim, hidden).
        key: (heads * head_dim, hidden).
        value: (heads * head_dim, hidden).
        num_heads: how many heads the three hold.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    _output: Tensor
    num_heads: int

    @property
    def output(self) -> Tensor:
        """A copy made now, since most adapters start without it: (hidden, heads * head_dim)."""
        return self._output.clone()


def all_real(values: Tensor) -> Tensor:
    """A mask of (batch, frames) that leaves out nothing."""
    return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


PRESENT = "present"
"""Key of which rows of a batch carry a modality: ``NAME__present``."""

FROM = "from"
"""Key of the first text position at which a modality acts on each row: ``NAME__from``."""

FRAMES, FRAMES_MASK = "frames", "frames_mask"
"""Keys of frames that are encoded already: ``NAME__frames`` and ``NAME__frames_mask``."""

WINDOW_COUNT = "window_count"
"""Key of how many windows each sample has, where one has several: ``NAME__window_count``."""

IGNORED = -100
"""The label of a position that no loss counts, as torch and transformers have it."""
