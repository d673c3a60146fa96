"""An image encoder and a language model become one LLaVA, and stay what they are."""

import pytest
import torch

from safe_framework.errors import UnsupportedBaseError
from safe_framework.experimental.vision_language.compose import (
    IMAGE,
    compose,
    image_features,
    projector_of,
)
from safe_framework.experimental.vision_language.pictures import read_picture
from safe_framework.experimental.vision_language.train import call_on_features
from safe_framework.utils.tensors import bitwise_equal
from tests.experimental.vision_language.conftest import LANGUAGE, VISION

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[(v, s) for v in VISION for s in LANGUAGE], ids="-".join)
def composed(request, parts):
    """A LLaVA of each pair of parts, its processor, and their folders."""
    vision, language = (parts / name for name in request.param)
    return *compose(str(vision), str(language)), vision, language


def batch_of(processor, parts, text=f"{IMAGE} w8 w9"):
    """One picture in one text."""
    picture = read_picture(parts / "train0.png")
    return processor(images=[picture], text=[text], return_tensors="pt")


def test_the_parts_keep_their_weights(composed):
    """Every weight of both parts is in the composed model, bit for bit."""
    from transformers import AutoModel, AutoModelForCausalLM

    model, _, vision, language = composed
    tower = AutoModel.from_pretrained(vision, config=model.config.vision_config)
    speaker = AutoModelForCausalLM.from_pretrained(language).base_model
    held = model.model.vision_tower.state_dict()
    assert all(bitwise_equal(value, held[name]) for name, value in tower.state_dict().items())
    held = model.model.language_model.state_dict()
    for name, value in speaker.state_dict().items():
        assert bitwise_equal(value, held[name][: len(value)]), name


def test_on_text_it_is_the_language_model(composed):
    """Without a picture its logits for words are the language model's."""
    from transformers import AutoModelForCausalLM

    model, _, _, language = composed
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        ours, theirs = model(input_ids=ids), AutoModelForCausalLM.from_pretrained(language)(ids)
    words = theirs.logits.shape[-1]
    assert torch.allclose(ours.logits[..., :words], theirs.logits, atol=1e-5)


def test_image_is_never_the_likeliest_word(composed):
    """The row that stands for ``<image>`` scores no higher than the best word."""
    model, processor, *_ = composed
    with torch.no_grad():
        logits = model(input_ids=torch.randint(3, 39, (8, 6))).logits
    assert (logits.argmax(-1) != processor.image_token_id).all()


def test_a_picture_takes_its_places(composed, parts):
    """The processor writes as many ``<image>`` as there are patches, and the model takes them."""
    model, processor, *_ = composed
    batch = batch_of(processor, parts)
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 4
    assert model.config.image_seq_length == 4
    with torch.no_grad():
        seen = model(**batch).logits
        other = model(**{**batch, "pixel_values": 1 - batch["pixel_values"]}).logits
    assert seen.isfinite().all()
    assert not torch.equal(seen, other)


def test_cached_patches_are_the_pictures(composed, parts):
    """What training computes from patches that were kept is what the pixels give."""
    model, processor, *_ = composed
    batch = batch_of(processor, parts)
    pixels = batch.pop("pixel_values")
    with torch.no_grad():
        kept = call_on_features(model, image_features(model, pixels), **batch).logits
        assert torch.equal(kept, model(**batch, pixel_values=pixels).logits)


def test_it_is_saved_and_loaded(composed, parts, tmp_path):
    """A composed model is an ordinary checkpoint: saved and loaded, it gives the same bits."""
    from transformers import LlavaForConditionalGeneration

    model, processor, *_ = composed
    model.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    batch = batch_of(processor, parts)
    with torch.no_grad():
        assert bitwise_equal(model(**batch).logits, again(**batch).logits)


def test_it_is_frozen(composed):
    """Nothing of it is trainable until its projector is trained, and it is in evaluation mode."""
    model = composed[0]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_the_projector_follows_the_seed(parts):
    """The same seed makes the same projector, another one another, and the caller's stays."""
    torch.manual_seed(7)
    made = [
        projector_of(compose(str(parts / "clip"), str(parts / "llama"), seed=seed)[0])
        for seed in (0, 0, 1)
    ]
    first, again, other = (projector.linear_1.weight for projector in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))


def test_dinov2_takes_larger_pictures(parts):
    """``image_size`` changes how many patches there are, where the encoder can."""
    model, processor = compose(str(parts / "dinov2"), str(parts / "llama"), image_size=16)
    batch = batch_of(processor, parts)
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 16
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()


@pytest.mark.parametrize(
    ("vision", "options", "words"),
    [
        ("clip", {"image_size": 16}, "failed on pictures of 16 pixels"),
        ("clip", {"layer": 9}, "failed on pictures of 8 pixels"),
    ],
)
def test_what_the_encoder_cannot_do_is_refused(parts, vision, options, words):
    """A size or a layer that the image encoder does not have is named."""
    with pytest.raises(UnsupportedBaseError, match=words):
        compose(str(parts / vision), str(parts / "llama"), **options)
