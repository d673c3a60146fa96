"""Vision bases, given audio by the shipped plugins: image, audio and text in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from safe_framework import attach
from safe_framework.config.read import parse_recipe
from safe_framework.core.model import SafeModel
from safe_framework.utils.tensors import bitwise_equal
from tests.core.test_encoder_decoders import blip2
from tests.runs.conftest import RATE, write_whisper
from tests.support.toys import HIDDEN, LAYERS, VOCABULARY, llama, llava, texts

ROWS = 2
RECIPE = """
[base]
model = "in memory"

[modalities.audio]
encoder = {{ use = "whisper", model = "{whisper}" }}
projector = {{ use = "standard", tokens = 2, hidden_dim = 8 }}
fusion = {{ use = "lora", rank = 2, layers = [0, {last}] }}
"""


class ShiftedLlama(LlamaForCausalLM):
    """A model of nobody's: a Llama whose every word is shifted by the picture."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.eye = nn.Linear(3 * 4 * 4, config.hidden_size)

    def forward(
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        inputs_embeds: Any = None,
        **rest: Any,
    ) -> Any:
        """Like a Llama's, with ``pixel_values``."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            inputs_embeds = inputs_embeds + self.eye(pixel_values.flatten(1)).unsqueeze(1)
        return super().forward(inputs_embeds=inputs_embeds, **rest)


def seeing_llava() -> tuple[Any, dict[str, Tensor]]:
    """A LLaVA, and a picture in each row."""
    base = llava()
    return base, texts(base, ROWS, 5)


def seeing_opt() -> tuple[Any, dict[str, Tensor]]:
    """A BLIP-2 whose language model is an OPT, and a picture in each row."""
    from transformers import OPTConfig

    text = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, ffn_dim=24,
        num_attention_heads=2, word_embed_proj_dim=HIDDEN, max_position_embeddings=64,
        pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    base, batch = blip2(text)
    batch.pop("decoder_input_ids")
    return base, batch


def seeing_own() -> tuple[Any, dict[str, Tensor]]:
    """A model class of one's own, and a picture in each row."""
    torch.manual_seed(0)
    base = ShiftedLlama(llama().config).eval()
    batch = texts(base, ROWS, 5)
    return base, batch | {"pixel_values": torch.randn(ROWS, 3, 4, 4)}


BASES = {"llava": seeing_llava, "blip2-opt": seeing_opt, "blip2-t5": blip2, "own": seeing_own}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper."""
    folder = tmp_path_factory.mktemp("whisper")
    write_whisper(folder)
    return folder


@pytest.fixture(params=BASES)
def with_audio(
    request: pytest.FixtureRequest, whisper: Path
) -> tuple[SafeModel, dict[str, Tensor]]:
    """A base that sees, with an audio modality that is no longer silent, and its batch."""
    base, batch = BASES[request.param]()
    recipe = parse_recipe(RECIPE.format(whisper=whisper, last=LAYERS - 1))
    model = attach(base, recipe=recipe, example=batch)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.trainable_parameters().items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5, generator=generator)
    return model, batch


def sounds(model: SafeModel, *here: bool) -> dict[str, Tensor]:
    """A tone for each row that has one."""
    tone = np.sin(np.arange(RATE // 2) / 9).astype(np.float32)
    return model.processor.modality("audio", [tone if one else None for one in here], RATE)


@torch.no_grad()
def logits(call: Any, batch: dict[str, Tensor]) -> Tensor:
    """The logits of a batch."""
    out: Tensor = call(**batch).logits
    return out


def test_all_three_count(with_audio: Any) -> None:
    """Picture, sound and words each change the logits."""
    model, batch = with_audio
    both = batch | sounds(model, True, True)
    found = logits(model, both)
    assert found.isfinite().all()
    words = batch["input_ids"].clone()
    words[:, -1] = 7 if int(words[0, -1]) != 7 else 8
    for other in (
        batch,
        both | {"pixel_values": -batch["pixel_values"]},
        both | {"input_ids": words},
    ):
        assert not torch.equal(logits(model, other), found)


def test_off_is_the_base(with_audio: Any) -> None:
    """Without sound, at gate 0 and inside ``off()``, a call with a picture is the base's."""
    model, batch = with_audio
    both, base = batch | sounds(model, True, True), logits(model.base, batch)
    assert bitwise_equal(logits(model, batch), base)
    assert bitwise_equal(logits(model, batch | sounds(model, False, False)), base)
    with model.off():
        assert bitwise_equal(logits(model, both), base)
    model.set_gate(0.0)
    assert bitwise_equal(logits(model, both), base)


def test_a_silent_row_is_the_bases(with_audio: Any) -> None:
    """A row with a picture and no sound keeps the base's bits beside a row with both."""
    model, batch = with_audio
    base, mixed = logits(model.base, batch), logits(model, batch | sounds(model, False, True))
    assert bitwise_equal(mixed[0], base[0])
    assert not bitwise_equal(mixed[1], base[1])


def test_it_generates(with_audio: Any) -> None:
    """Words are generated from picture and sound; without sound they are the base's."""
    model, batch = with_audio
    options = {"max_new_tokens": 3, "do_sample": False, "min_new_tokens": 3}
    words = {name: value for name, value in batch.items() if not name.startswith("decoder_")}
    plain = model.base.generate(**words, **options)
    with model.off():
        assert torch.equal(model.generate(**words, **sounds(model, True, True), **options), plain)
    active = model.generate(**words, **sounds(model, True, True), **options)
    assert active.shape == plain.shape
