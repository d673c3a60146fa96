"""The tiny bases that see have real processors, and pictures matter to them."""

from __future__ import annotations

import pytest
import torch

from safe_framework.config.schema import BaseSpec
from safe_framework.pretrained.base_model import load_base_processor
from tests.support.lanes import slow_but
from tests.support.seeing import reading_bases, save, seeing_bases
from tests.zoo.pictures import question

SEEING = seeing_bases()
LARGEST = 200_000


@pytest.fixture(scope="module", params=slow_but(["llava", "qwen2-vl"], SEEING))
def name(request):
    """One type; the slow lane has them all."""
    return request.param


@pytest.fixture(scope="module")
def made(name):
    """A tiny model of the type, and its processor."""
    return SEEING[name]()


def logits(model, processor, colour):
    """What the model says of a picture of this colour."""
    with torch.no_grad():
        return model(**question(model, processor, colour, rows=1)).logits


def test_there_are_fifteen():
    """Every image-text type that a recipe is promised to work on."""
    assert len(SEEING) == 15


def test_another_picture_moves_the_logits(made):
    """By more than a tenth of what they vary over words."""
    red, blue = logits(*made, "red"), logits(*made, "blue")
    assert red.isfinite().all()
    assert (red - blue).abs().mean() > 0.1 * red.std()


def test_its_processor_is_saved_beside_the_model(made, tmp_path):
    """A folder that ``save`` writes gives the same model and the same kind of processor."""
    model, processor = made
    save(tmp_path, model, processor)
    again = (
        type(model).from_pretrained(tmp_path),
        load_base_processor(BaseSpec(model=str(tmp_path))),
    )
    assert type(again[1]) is type(processor)
    torch.testing.assert_close(logits(*made, "red"), logits(*again, "red"))


def test_they_are_tiny(made):
    """A few ten thousand numbers, in evaluation mode."""
    assert sum(parameter.numel() for parameter in made[0].parameters()) < LARGEST
    assert not made[0].training


def test_any_text_comes_back(made):
    """The tokenizer loses nothing of a text, and words that it knows are one token each."""
    words = made[1].tokenizer
    for text in ("what is this?", "A zebra, très   grand"):
        ids = words(text, add_special_tokens=False)["input_ids"]
        assert words.decode(ids) == text
    assert len(words.tokenize("what is this")) == 3


@pytest.mark.parametrize("name", reading_bases())
def test_the_encoder_decoders_that_read_continue(name):
    """Each answers another text with other logits."""
    model, words = reading_bases()[name]()
    batch = words(["what is this", "the cat sat"], return_tensors="pt")
    with torch.no_grad():
        out = model(**batch, decoder_input_ids=batch["input_ids"][:1, :2].repeat(2, 1)).logits
    assert not torch.equal(out[0], out[1])
