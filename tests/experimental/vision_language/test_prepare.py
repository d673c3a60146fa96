"""Batches of text, pictures and sound for a base that sees."""

from pathlib import Path

import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.experimental.vision_language.compose import IMAGE, compose
from safe_framework.experimental.vision_language.pictures import read_picture
from tests.support.marked import SAMPLE, ThreeTokens
from tests.support.toys import ToyEncoder, ToyFusion

pytestmark = pytest.mark.slow


def test_a_picture_a_sound_and_an_answer_in_one_batch(parts: Path) -> None:
    """Law: a picture's places are masked as the text is, and any of the rows may lack any part."""
    base, processor = compose(str(parts / "clip"), str(parts / "llama"))
    model = SafeModel(base, processor)
    model.add_modality(
        "audio", encoder=ToyEncoder(), projector=ThreeTokens(), fusion=ToyFusion(), markers=True
    )
    picture = read_picture(parts / "train0.png")
    batch = model.prepare_multimodal_inputs(
        text=[f"{IMAGE} w8", "<audio> w9 w10", "w11"],
        images=[picture, None, None],
        audio=[None, SAMPLE, None],
        answers=["w3", "w4 w5", None],
        training_mode=True,
    )
    end = processor.tokenizer.eos_token_id
    words = [processor.tokenizer(a, add_special_tokens=False)["input_ids"] for a in ("w3", "w4 w5")]
    told = [row[row != -100].tolist() for row in batch["labels"]]
    assert told == [[*words[0], end], [*words[1], end], []]
    assert (batch["input_ids"] == processor.image_token_id).sum() == 4
    assert batch["audio__present"].tolist() == [False, True, False]
    loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.any() for p in model.trainable_parameters().values())
