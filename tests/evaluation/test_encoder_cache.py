"""In an evaluation a frozen encoder sees each sample once, and the measures stay the same."""

from collections.abc import Mapping
from contextlib import nullcontext
from importlib import import_module

import torch
from torch import Tensor

from safe_framework.evaluation.encoder_cache import EncoderCache, cached_encoders
from safe_framework.evaluation.evaluate import evaluate
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.types import Frames
from safe_framework.utils.tensors import bitwise_equal


class Ragged(Encoder):
    """As many frames as the longest row of a batch asks for; it counts the rows it is given."""

    dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def prepare(self, samples: object) -> Mapping[str, Tensor]:
        raise NotImplementedError

    def forward(self, **inputs: Tensor) -> Frames:
        lengths = inputs["length"]
        self.rows += len(lengths)
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        values = inputs["level"][:, None, None].expand(*mask.shape, 2)
        return Frames(torch.where(mask[..., None], values, 0.0), mask)


def batch(*rows: tuple[int, float]) -> dict[str, Tensor]:
    """Prepared inputs of rows with a length and a level."""
    lengths, levels = zip(*rows, strict=True)
    return {"length": torch.tensor(lengths), "level": torch.tensor(levels)}


def test_a_row_is_encoded_once() -> None:
    """Rows that were seen, in this batch or before, are not encoded again, and come out equal."""
    encoder, memory = Ragged(), EncoderCache()
    first = batch((1, 0.5), (3, 0.25), (1, 0.5))
    assert bitwise_equal(memory(encoder, first).values, Ragged()(**first).values)
    assert encoder.rows == 2
    mixed = batch((3, 0.25), (2, 0.5), (1, 0.5))
    found, expected = memory(encoder, mixed), Ragged()(**mixed)
    assert encoder.rows == 3
    assert bitwise_equal(found.values, expected.values)
    assert bitwise_equal(found.mask, expected.mask)
    short = memory(encoder, batch((1, 0.5)))
    assert encoder.rows == 3
    assert short.mask.all()


def test_every_tensor_of_a_row_counts() -> None:
    """Rows that differ in one tensor, or in the sign of a zero, are different rows."""
    encoder, memory = Ragged(), EncoderCache()
    memory(encoder, batch((2, 0.0), (2, -0.0), (1, 0.0)))
    assert encoder.rows == 3


def test_past_the_limit_nothing_is_kept() -> None:
    """Frames that do not fit are encoded each time, and given all the same."""
    encoder, memory = Ragged(), EncoderCache(most_bytes=40)
    for _ in range(2):
        assert memory(encoder, batch((3, 0.5), (4, 0.25))).mask.sum() == 7
    assert memory.bytes <= 40
    assert encoder.rows == 3


def test_measures_stay_the_same(model, examples, texts, monkeypatch) -> None:
    """An evaluation finds what it finds without a memory, encodes less, and leaves none behind."""
    given = {"train": examples, "test": examples, "texts": texts, "max_new_tokens": 2}
    seen: list[int] = []
    encoder = model.modality("touch").encoder
    encoder.register_forward_hook(lambda *call: seen.append(len(call[-1].values)))
    found = evaluate(model, modality="touch", **given)
    assert model.modality("touch").memory is None
    once = sum(seen)
    seen.clear()
    module = import_module("safe_framework.evaluation.evaluate")
    monkeypatch.setattr(module, "cached_encoders", nullcontext)
    again = evaluate(model, modality="touch", **given)
    assert once < sum(seen) / 2
    assert found.gain == again.gain
    assert found.retention == again.retention


def test_an_encoder_that_trains_is_not_remembered(model) -> None:
    """What a trainable encoder gives may change: it is run each time."""
    model.modality("touch").encoder.weight = torch.nn.Parameter(torch.zeros(1))
    with cached_encoders(model):
        assert model.modality("touch").memory is None
