"""Puts the vectors of markers where a base looks up the words of its prompt."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor


@attrs.define(eq=False)
class MarkedPrompt:
    """The places in one call's prompt where one modality's vectors stand.

    A base may look its prompt up at once, in chunks, again and again behind a growing text, or
    for several copies of each row; other look-ups must pass by.

    Attributes:
        ids: the prompt as the base is shown it, (batch, length).
        compared: True where a look-up must find the same id, (batch, length).
        places: row and column of each vector, (places, 2).
        vectors: what stands there, (places, width).
        once: whether the prompt is looked up only once, as an encoder's text is.
        reached: how many columns have been looked up, or lie in a cache.
    """

    ids: Tensor
    compared: Tensor
    places: Tensor
    vectors: Tensor
    once: bool
    reached: int = 0

    @property
    def complete(self) -> bool:
        """Whether every vector has found its place."""
        return int(self.places[:, 1].max()) < self.reached

    def embed(self, ids: object, embedded: Tensor) -> Tensor | None:
        """What a look-up of ``ids`` should have given, or None if it is not the prompt's.

        Args:
            ids: that were looked up, (batch * copies, columns).
            embedded: the base's own vectors, (batch * copies, columns, width).
        """
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[0] % len(self.ids):
            return None
        start = self._start(ids.shape[1])
        stop = min(start + ids.shape[1], self.ids.shape[1])
        if start >= stop or not self._matches(ids[:, : stop - start], start):
            return None
        self.reached = max(self.reached, stop)
        return self._placed(embedded, start, stop)

    def _start(self, columns: int) -> int:
        """The prompt's column at which a look-up of so many columns begins."""
        whole = columns >= self.ids.shape[1] and not self.once
        return 0 if whole else self.reached

    def _matches(self, ids: Tensor, start: int) -> bool:
        columns = slice(start, start + ids.shape[1])
        copies = len(ids) // len(self.ids)
        wanted, compared = (
            tensor[:, columns].to(ids.device).repeat_interleave(copies, 0)
            for tensor in (self.ids, self.compared)
        )
        return bool(((ids == wanted) | ~compared).all())

    def _placed(self, embedded: Tensor, start: int, stop: int) -> Tensor:
        copies = len(embedded) // len(self.ids)
        rows, columns = self.places.to(embedded.device).unbind(1)
        here = (columns >= start) & (columns < stop)
        copy = torch.arange(copies, device=embedded.device)
        row = (rows[here, None] * copies + copy).flatten()
        column = (columns[here] - start).repeat_interleave(copies)
        vectors = self.vectors.to(embedded.device, embedded.dtype)[here]
        return embedded.index_put((row, column), vectors.repeat_interleave(copies, 0))
