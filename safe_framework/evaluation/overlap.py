"""Test rows that were trained on: what is measured on them is memory, not hearing."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from safe_framework.data.examples import Example
from safe_framework.data.frame_cache import sample_key
from safe_framework.errors import SampleError


@attrs.frozen
class TrainedOn:
    """A test row that holds the sample, and the pictures if any, of a training row.

    Attributes:
        place: of the test row.
        trained: place of the first such training row.
    """

    place: str
    trained: str


def trained_on(
    modality: str, train: Sequence[Example], test: Sequence[Example]
) -> tuple[TrainedOn, ...]:
    """The test rows that were trained on, by the content of sample and pictures, whatever is asked.

    Args:
        modality: whose samples are compared.
        train: each with a sample of it.
        test: likewise.
    """
    known: dict[tuple[str, ...], str] = {}
    for example in train:
        if held := _contents(modality, example):
            known.setdefault(held, example.place)
    found = ((example.place, _contents(modality, example)) for example in test)
    return tuple(TrainedOn(place, known[held]) for place, held in found if held in known)


def _contents(modality: str, example: Example) -> tuple[str, ...]:
    try:
        sample = sample_key(example.samples[modality])
    except SampleError:  # what holds no array cannot be compared
        return ()
    return sample, *(picture.digest for picture in example.images)
