"""The tiny bases that see have real processors, and pictures matter to them."""

from __future__ import annotations

import pytest
import torch

from tests.support.lanes import slow_but
from tests.support.seeing import picture, save, seeing_bases

BASES = seeing_bases()


@pytest.fixture(scope="module", params=slow_but(["llava"], BASES))
def name(request):
    """One type; the slow lane has them all."""
    return request.param


@pytest.fixture(scope="module")
def made(name):
    """A tiny model of the type, and its processor."""
    return BASES[name]()


def logits(model, processor, colour):
    """What the model says of a picture of this colour."""
    parts = [{"type": "image"}, {"type": "text", "text": "what is this"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}])
    batch = processor(text=[text], images=[picture(colour)], return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits


def test_another_picture_moves_the_logits(made):
    """By more than a hundredth of what they vary over words."""
    red, blue = logits(*made, "red"), logits(*made, "blue")
    assert (red - blue).abs().mean() > 0.01 * red.std()


def test_its_processor_is_saved_beside_the_model(made, tmp_path):
    """A folder that ``save`` writes holds what ``AutoProcessor`` and ``from_pretrained`` read."""
    from transformers import AutoProcessor

    model, processor = made
    save(tmp_path, model, processor)
    again = type(model).from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(again[1]) is type(processor)
    assert torch.equal(logits(*made, "red"), logits(*again, "red"))


def test_any_text_comes_back(made):
    """The tokenizer loses nothing of a text, and words that it knows are one token each."""
    words = made[1].tokenizer
    for text in ("what is this?", "A zebra, très   grand"):
        ids = words(text, add_special_tokens=False)["input_ids"]
        assert words.decode(ids) == text
    assert len(words.tokenize("what is this")) == 3
