"""Evaluation of a tiny base of every image-text type, with its own processor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from safe_framework.core.model import SafeModel
from safe_framework.errors import DataError
from safe_framework.evaluation.alignment import IMAGE_FEATURES, LEAVING
from safe_framework.evaluation.evaluate import evaluate
from tests.evaluation.conftest import AddTokens, PairEncoder
from tests.evaluation.pictured import WideProjector, examples, texts
from tests.support.seeing import seeing_bases

TYPES = tuple(seeing_bases())
NEEDS_A_PICTURE = {"blip-2-opt", "blip-2-t5", "instructblip"}
OPTIONS = {"max_new_tokens": 1, "bootstrap": 5}


def touching(name: str) -> SafeModel:
    """A tiny base of a type, with a sense."""
    model = SafeModel(*seeing_bases()[name]())
    torch.manual_seed(0)
    projector = WideProjector()
    projector.linear = nn.Linear(2, model.facts().hidden_size)
    model.add_modality("touch", encoder=PairEncoder(), projector=projector, fusion=AddTokens())
    return model


def test_there_are_types() -> None:
    """Law: the list below is not empty, and those that need a picture are among it."""
    assert len(TYPES) > 10
    assert set(TYPES) >= NEEDS_A_PICTURE


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_measured(name: str) -> None:
    """Law: absent, its seeing is the base's bit for bit, and its pictures meet the tokens."""
    pictured = name in NEEDS_A_PICTURE
    rows = [row for row in examples()[:6] if row.images or not pictured]
    asked = [row for row in texts()[:4] if row.images or not pictured]
    found = evaluate(
        touching(name), modality="touch", train=rows, test=rows, texts=asked, **OPTIONS
    )
    assert found.seeing is not None
    assert found.seeing.identical
    assert found.retention.absent.identical
    assert found.gate_zero.identical
    assert found.picture_alignment is not None
    expected = LEAVING if name == "mllama" else IMAGE_FEATURES
    assert found.picture_alignment.source == expected


@pytest.mark.parametrize("name", sorted(NEEDS_A_PICTURE))
def test_a_base_that_answers_only_pictures_says_so(name: str) -> None:
    """Law: a row without a picture is refused by its place, where the base cannot answer it."""
    rows = examples()[:4]
    with pytest.raises(DataError, match=r"test\.jsonl:1: the row has no picture"):
        evaluate(touching(name), modality="touch", train=rows, test=rows, texts=texts(), **OPTIONS)
