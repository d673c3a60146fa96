"""How a base lays out the hidden states between its layers.

Most hand on (batch, length, hidden). A few keep several parallel streams of hidden states
(hyper-connections, arXiv:2409.19606; AltUp, arXiv:2301.13310) or put the length first. A fusion
adapter is always shown (batch, length, hidden), the mean over streams; its delta goes to all.
"""

from __future__ import annotations

import attrs
from torch import Tensor


@attrs.frozen
class Layout:
    """The meaning of the axes of a hidden state; the last one is always its width.

    Attributes:
        axes: names of the axes, as messages show them.
        batch: place of the samples.
        length: place of the text positions.
        streams: place of the parallel streams, if there are any.
    """

    axes: str
    batch: int = 0
    length: int = 1
    streams: int | None = None

    def shown(self, hidden: Tensor) -> Tensor:
        """What a fusion adapter sees: (batch, length, hidden)."""
        if self.streams is not None:
            hidden = hidden.mean(self.streams)
        return hidden.transpose(0, 1) if self.batch > self.length else hidden

    def spread(self, delta: Tensor) -> Tensor:
        """A delta of (batch, length, hidden) such that it can be added to a hidden state."""
        if self.batch > self.length:
            delta = delta.transpose(0, 1)
        return delta if self.streams is None else delta.unsqueeze(self.streams)


PLAIN = Layout("(batch, length, hidden)")
LENGTH_FIRST = Layout("(length, batch, hidden)", batch=1, length=0)
STREAMS_INSIDE = Layout("(batch, length, streams, hidden)", streams=2)
STREAMS_OUTSIDE = Layout("(streams, batch, length, hidden)", batch=1, length=2, streams=0)


def layout_of(shape: tuple[int, ...], batch: int) -> Layout | None:
    """The layout of a hidden state of ``shape`` in a call of ``batch`` rows, if it is known."""
    by_axes = {3: (PLAIN, LENGTH_FIRST), 4: (STREAMS_INSIDE, STREAMS_OUTSIDE)}
    known = by_axes.get(len(shape), ())
    return next((layout for layout in known if shape[layout.batch] == batch), None)


def layout_named(axes: str) -> Layout:
    """The known layout with these axes."""
    known = (PLAIN, LENGTH_FIRST, STREAMS_INSIDE, STREAMS_OUTSIDE)
    return next(layout for layout in known if layout.axes == axes)
