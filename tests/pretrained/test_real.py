"""The checkpoints that the shipped cards describe."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperModel,
)

from safe_framework.data.audio import Waveform
from safe_framework.pretrained import quietly, read_card, resolve
from safe_framework.utils import catalogue
from safe_framework_plugins.encoders.aisfx import AisfxEncoder
from safe_framework_plugins.encoders.image import ImageEncoder

pytestmark = pytest.mark.real


def test_smollm2_answers() -> None:
    """Law: the expanded language model still knows what it knew, and its card its size."""
    card = read_card(catalogue.card_path("smollm2-135m-instruct-q4"))
    path = resolve(card.name, quiet=True)
    tokenizer = AutoTokenizer.from_pretrained(path)
    with quietly():
        model = AutoModelForCausalLM.from_pretrained(path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(answer)
    assert sum(parameter.numel() for parameter in model.parameters()) == card.facts["parameters"]
    assert len(model.model.layers) == card.facts["layers"]


def test_whisper_distinguishes_sounds() -> None:
    """Law: two seeds of noise sound alike to Whisper's encoder, and a tone unlike either."""
    card = read_card(catalogue.card_path("whisper-tiny.en"))
    path = resolve(card.name, quiet=True)
    extractor = WhisperFeatureExtractor.from_pretrained(path)
    with quietly():
        model = WhisperModel.from_pretrained(path)
    seconds = np.arange(16000) / 16000
    sounds = [np.random.default_rng(seed).normal(0, 0.1, 16000) for seed in (0, 1)]
    sounds += [np.sin(2 * np.pi * 440 * seconds)]
    inputs = extractor(sounds, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        states = model.encoder(inputs["input_features"]).last_hidden_state[:, :50].mean(dim=1)
    alike, unlike = torch.cosine_similarity(states[:1], states[1:])
    assert alike > unlike
    assert states.shape[1] == card.facts["hidden_size"]
    assert sum(parameter.numel() for parameter in model.parameters()) == card.facts["parameters"]


def test_aisfx_distinguishes_sounds() -> None:
    """Law: two seeds of noise sound alike to aiSFX, and a tone unlike either."""
    card = read_card(catalogue.card_path("aisfx"))
    encoder = AisfxEncoder(model=card.name)
    seconds = np.arange(44_100) / 44_100
    sounds = [np.random.default_rng(seed).normal(0, 0.1, 44_100) for seed in (0, 1)]
    sounds += [np.sin(2 * np.pi * 440 * seconds)]
    with torch.no_grad():
        states = encoder(**encoder.prepare([Waveform(one, 44_100) for one in sounds])).values
    alike, unlike = torch.cosine_similarity(states.mean(dim=1)[:1], states.mean(dim=1)[1:])
    assert alike > unlike
    assert encoder.dim == card.facts["hidden_size"]
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert count == card.facts["parameters"]


def test_dinov2_distinguishes_shapes() -> None:
    """Law: two positions of a disc look alike to DINOv2, and a grid of lines unlike either."""
    card = read_card(catalogue.card_path("dinov2-small"))
    encoder = ImageEncoder(model=card.name, layer=8)
    grid = np.stack(np.meshgrid(np.arange(112), np.arange(112)))
    pictures = [
        np.uint8(255 * (np.hypot(*(grid - middle)) < 25)[..., None].repeat(3, 2))
        for middle in (45, 65)
    ]
    pictures += [np.uint8(255 * (grid % 16 < 3).any(0)[..., None].repeat(3, 2))]
    with torch.no_grad():
        states = encoder(**encoder.prepare(pictures)).values.mean(dim=1)
    alike, unlike = torch.cosine_similarity(states[:1], states[1:])
    assert alike > unlike
    assert encoder.dim == card.facts["hidden_size"]
    path = resolve(card.name, quiet=True)
    with quietly():
        model = AutoModel.from_pretrained(path)
    assert sum(parameter.numel() for parameter in model.parameters()) == card.facts["parameters"]
    assert len(model.encoder.layer) == card.facts["layers"]
