"""Samples whose encoder trains: prepared with their batch, and encoded anew in each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from safe_framework.core.modality import PRESENT, Modality
from safe_framework.data.frame_cache import sample_key
from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.types import Frames, Sample

Progress = Callable[[str, int, int], None]


@attrs.frozen(eq=False)
class Unencoded:
    """A row's sample where finished frames would not stay true.

    Attributes:
        sample: as it was read.
        encoder: that prepares it, beside the others of its batch.
    """

    sample: Sample
    encoder: Encoder


Row = Frames | Unencoded
"""One sample of a row: its frames, or the sample itself if its encoder trains."""


class UnencodedSamples:
    """What a ``FrameStore`` is to a frozen encoder, for one that trains: it keeps the samples.

    Args:
        modality: whose encoder trains.
    """

    def __init__(self, modality: Modality) -> None:
        self.modality = modality

    def frames(
        self,
        samples: Sequence[Sample],
        progress: Progress | None = None,
        places: Sequence[str] | None = None,
    ) -> list[Unencoded]:
        """One row for each sample, tried on the encoder now so that a bad one stops the run here.

        Args:
            samples: to keep.
            progress: called after each sample.
            places: where each sample comes from, for messages.

        Raises:
            SampleError: a sample cannot be used.
        """
        encoder = self.modality.encoder
        named = places or [f"samples[{i}]" for i in range(len(samples))]
        for done, (sample, place) in enumerate(zip(samples, named, strict=True), start=1):
            try:
                encoder.prepare([sample])
            except SampleError as error:
                raise SampleError(f"{place}: {error.message}", hint=error.hint) from error
            if progress:
                progress("trying samples", done, len(samples))
        return [Unencoded(sample, encoder) for sample in samples]


def prepared(name: str, encoder: Encoder, samples: Sequence[Sample | None]) -> dict[str, Tensor]:
    """The part of a batch that carries modality ``name`` as its encoder takes it.

    Args:
        name: of the modality.
        encoder: its own.
        samples: one for each row; None is absent, and its row is zeros.
    """
    present = torch.tensor([sample is not None for sample in samples])
    batch = {f"{name}__{PRESENT}": present}
    if not present.any():
        return batch
    real = [sample for sample in samples if sample is not None]
    for key, values in encoder.prepare(real).items():
        rows = values.new_zeros(len(samples), *values.shape[1:])
        rows[present] = values
        batch[f"{name}__{key}"] = rows
    return batch


def inputs_of(name: str, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Modality ``name``'s part of a batch, by the keys that its encoder knows."""
    prefix = f"{name}__"
    return {
        key.removeprefix(prefix): value
        for key, value in batch.items()
        if key.startswith(prefix) and key != prefix + PRESENT
    }


def contents(rows: Mapping[str, Row]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What tells rows from others: the frames of some, and hashes of the samples of the rest."""
    frames = {key: row.values for key, row in rows.items() if isinstance(row, Frames)}
    hashes = {key: sample_key(r.sample) for key, r in rows.items() if isinstance(r, Unencoded)}
    return frames, hashes
