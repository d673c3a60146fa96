"""Tiny random checkpoints of a recipe's architectures, and the recipe on them."""

import re
from functools import cache
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig

from safe_framework import catalogue
from safe_framework._recipe import Recipe, parse_recipe
from safe_framework.checkpoints import Card, quietly, read_card
from safe_framework.testing.zoo import tiny, types
from tests.toys import tokenizer

WIDTH, LAYERS = 16, 2
SMALLER = {
    "whisper": {
        "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": WIDTH,
        "decoder_ffn_dim": WIDTH, "vocab_size": 20, "max_source_positions": 100,
        "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1,
    },
}  # fmt: skip
"""What makes an encoder's config tiny, by its type."""
SHORTER = {"chunk_length": 2}
"""What makes a preprocessor take two seconds, as the tiny Whisper does."""


def stand_in(card: Card, folder: Path) -> Path:
    """A random checkpoint of the card's architecture, with what reads its inputs."""
    place = folder / card.name
    if place.is_dir():
        return place
    with quietly():
        if card.kind.endswith("language-model"):
            _base(card.config["model_type"]).save_pretrained(place)
            tokenizer().save_pretrained(place)
        else:
            _encoder(card).save_pretrained(place)
            kind = getattr(transformers, card.preprocessor["feature_extractor_type"])
            kind(**{**card.preprocessor, **SHORTER}).save_pretrained(place)
    return place


@cache
def _base(model_type: str) -> torch.nn.Module:
    task = next(task for task, kind in types() if kind == model_type)
    return tiny(task, model_type).model


def _encoder(card: Card) -> torch.nn.Module:
    fields = {**card.config, **SMALLER[card.config["model_type"]]}
    torch.manual_seed(0)
    return getattr(transformers, card.config["architectures"][0])(AutoConfig.for_model(**fields))


def small_recipe(name: str, folder: Path) -> Recipe:
    """A recipe of the catalogue on stand-ins: one step, narrow, fused at the last layer."""
    path = catalogue.recipe_path(name)
    text = path.read_text("utf-8")
    for card in [read_card(path) for path in catalogue.cards().values()]:
        if f'model = "{card.name}"' in text:
            text = text.replace(f'"{card.name}"', f'"{stand_in(card, folder)}"')
    changes = {
        r"layers = \[.*?\]": "layers = [-1]",
        r"hidden_dim = [\d_]+": "hidden_dim = 8",
        r"max_steps = [\d_]+": "max_steps = 1\nbatch_size = 2\nretention_batch_size = 2",
        r"(?<!retention_)batch_size = 1\d": "",
        r"retention_batch_size = 8": "",
        r"warmup_steps = [\d_]+": "warmup_steps = 0",
        r"align_steps = [\d_]+": "align_steps = 1",
    }
    for pattern, value in changes.items():
        text = re.sub(pattern, value, text)
    return parse_recipe(text, str(path), path.parent)
