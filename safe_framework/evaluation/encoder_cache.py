"""Frames of samples that come again in an evaluation: each is encoded once.

A sample is asked about with its own question, with another's, with texts, and by the probe; a
frozen encoder gives the same frames each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from safe_framework.core.padding import concatenate_rows
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.types import Frames
from safe_framework.utils.tensors import as_bytes

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel

MOST_BYTES = 512 * 2**20
"""Of the frames of one modality: past them, what comes new is encoded and not kept."""


@contextmanager
def cached_encoders(model: SafeModel) -> Iterator[None]:
    """Within the block, frozen encoders are not run again on rows that they have seen."""
    modalities = [model.modality(name) for name in model.modalities]
    frozen = [modality for modality in modalities if not modality.encoder_trains]
    for modality in frozen:
        modality.memory = EncoderCache()
    try:
        yield
    finally:
        for modality in frozen:
            modality.memory = None


class EncoderCache:
    """Runs an encoder on the rows of a batch that it has not seen yet.

    Args:
        most_bytes: of frames that are kept.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._kept: dict[str, Frames] = {}

    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Frames:
        """What ``encoder(**inputs)`` gives, padded to the longest of these rows alone."""
        keys = _keys(inputs)
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        new = [key for key in first if key not in self._kept]
        if not new:
            return _stacked([self._kept[key] for key in keys])
        rows = [first[key] for key in new]
        frames: Frames = encoder(**{name: value[rows] for name, value in inputs.items()})
        if not isinstance(frames, Frames):
            return frames  # for the modality to refuse
        found = {key: _row(frames, row) for row, key in enumerate(new)}
        self._keep(found)
        return _stacked([found[key] if key in found else self._kept[key] for key in keys])

    def _keep(self, found: Mapping[str, Frames]) -> None:
        for key, one in found.items():
            size = one.values.nbytes + one.mask.nbytes
            if self.bytes + size <= self.most_bytes:
                self._kept[key] = one
                self.bytes += size


def _keys(inputs: Mapping[str, Tensor]) -> list[str]:
    """The content of each row, over every tensor of a batch."""
    columns = {name: value.cpu() for name, value in sorted(inputs.items())}
    count = len(next(iter(columns.values())))
    return [_digest({name: value[row] for name, value in columns.items()}) for row in range(count)]


def _digest(row: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in row.items():
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(as_bytes(value).numpy().data)
    return digest.hexdigest()


def _row(frames: Frames, row: int) -> Frames:
    """One row without the padding at its end, but for one frame where none is real."""
    real = frames.mask[row].nonzero().flatten().tolist()
    last = max(real, default=0) + 1
    return Frames(frames.values[row : row + 1, :last].clone(), frames.mask[row : row + 1, :last])


def _stacked(rows: Sequence[Frames]) -> Frames:
    """Rows of one sample each as a batch, padded to the longest."""
    values = concatenate_rows([one.values for one in rows])  # (batch, frames, dim)
    return Frames(values, concatenate_rows([one.mask for one in rows]))
