"""Bases whose language model has an encoder of its own, behind a vision tower."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.core.layer_discovery import Side
from safe_framework.core.model import SafeModel
from tests.laws.calls import all_same, copy_of, generate_tensors
from tests.support.toys import HIDDEN, IMAGE, VOCABULARY, ToyEncoder, ToyFusion, ToyProjector, felt
from tests.zoo.models import tiny

ROWS, QUERIES = 2, 3
PATHS = {
    "decoder": "language_model.decoder.block",
    "encoder": "language_model.encoder.block",
}


def blip2(text: Any = None) -> tuple[Any, dict[str, Tensor]]:
    """A BLIP-2 whose language model is a T5 or of ``text``, and an image in each row of a batch."""
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        T5Config,
    )

    text = text or T5Config(
        vocab_size=VOCABULARY, d_model=HIDDEN, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    vision = Blip2VisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        image_size=4, patch_size=2,
    )  # fmt: skip
    queries = Blip2QFormerConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, encoder_hidden_size=8,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=vision.to_dict(), qformer_config=queries.to_dict(),
        text_config=text.to_dict(), num_query_tokens=QUERIES, image_token_index=IMAGE,
    )  # fmt: skip
    base = Blip2ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in base.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3, generator=generator)
    words = torch.randint(3, IMAGE, (ROWS, 4), generator=generator)
    ids = torch.cat([torch.full((ROWS, QUERIES), IMAGE), words], dim=1)
    return base, {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(ROWS, 3, 4, 4, generator=generator),
        "decoder_input_ids": words[:, :2].contiguous(),
    }


@pytest.mark.parametrize("side", PATHS)
def test_blip2_with_flan_t5_is_fused_on_either_side(side: Side) -> None:
    """L2, and an open gate changes outputs, in the decoder or the encoder of the language model."""
    base, batch = blip2()
    untouched, model = copy_of(base), SafeModel(base, example=batch, side=side)
    assert model.stack.path == PATHS[side]
    model.add_modality(
        "touch", encoder=ToyEncoder(), projector=ToyProjector(), fusion=ToyFusion(layers=[0, 1])
    )
    samples, options = felt(ROWS), {"num_beams": 2}
    with torch.no_grad():
        expected = [untouched(**batch).logits]
        assert all_same([model(**batch).logits], expected)
        with model.off():
            assert all_same([model(**batch, **samples).logits], expected)
        assert not all_same([model(**batch, **samples).logits], expected)
    silent = generate_tensors(untouched.generate, batch, options)
    assert all_same(generate_tensors(model.generate, batch, options), silent)
    assert not all_same(generate_tensors(model.generate, batch | samples, options), silent)


def test_florence2_can_be_fused_where_image_meets_text() -> None:
    """An encoder-decoder that reads images: the text decoder by default, its encoder on request."""
    base = tiny("image_text", "florence2").model
    prefix = "model.language_model"
    assert SafeModel(base).stack.path == f"{prefix}.decoder.layers"
    assert SafeModel(base, side="encoder").stack.path == f"{prefix}.encoder.layers"
