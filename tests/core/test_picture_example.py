"""A base that runs on no text without a picture is attached with its processor alone."""

from __future__ import annotations

import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.errors import UnsupportedBaseError
from safe_framework.verification.target import with_made_up_modality
from tests.support.lanes import slow_but
from tests.support.seeing import seeing_bases
from tests.zoo.pictures import problems, question

NEEDS_A_PICTURE = ["blip-2-opt", "blip-2-t5", "instructblip"]


@pytest.fixture(scope="module", params=slow_but(["blip-2-opt"], NEEDS_A_PICTURE))
def made(request):
    """Such a base, and its processor."""
    return seeing_bases()[request.param]()


def test_its_processor_is_enough(made):
    """Its layers are found by a call with a picture, which the processor prepares."""
    base, processor = made
    model = SafeModel(base, processor)
    assert model.stack.count == 2
    assert model.stack.hidden_size == 32


def test_a_modality_is_attached(made):
    """A modality is heard beside a picture, and leaves the base as it is when it is off."""
    base, processor = made
    model = with_made_up_modality(base, processor)
    torch.manual_seed(0)
    for parameter in model.trainable_parameters().values():
        parameter.data.normal_(std=0.3)
    red, blue = (question(base, processor, colour) for colour in ("red", "blue"))
    assert list(problems(model, red, blue)) == []


def test_without_it_the_error_says_what_to_give(made):
    """A base alone, or with a tokenizer, is refused; the hint names the processor."""
    base, processor = made
    for given in (None, processor.tokenizer):
        with pytest.raises(UnsupportedBaseError, match="pixel_values") as raised:
            SafeModel(base, given)
        assert raised.value.hint.startswith("give its processor")
