"""Tiny random checkpoints of a recipe's architectures, and the recipe on them."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

from safe_framework.config.read import parse_recipe
from safe_framework.config.schema import ComposeSpec, Recipe
from safe_framework.experimental.vision_language.compose import CHAT_TEMPLATE, compose
from safe_framework.experimental.vision_language.train import write_checkpoint
from safe_framework.pretrained import Card, quietly, read_card
from safe_framework.utils import catalogue
from tests.plugins.checkpoints import write_aisfx_folder
from tests.support.seeing import save, seeing_bases
from tests.support.toys import tokenizer
from tests.zoo.models import tiny, types

WIDTH, LAYERS = 16, 2
SMALLER = {
    "whisper": {
        "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": WIDTH,
        "decoder_ffn_dim": WIDTH, "vocab_size": 20, "max_source_positions": 250,
        "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1,
    },
    "clap": {
        "audio_config": {
            "patch_embeds_hidden_size": WIDTH // 2, "hidden_size": 4 * WIDTH,
            "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4],
            "enable_fusion": True, "fusion_type": "aff_2d",
        },
        "text_config": {
            "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 8,
        },
    },
    "clip": {
        "vision_config": {
            "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": LAYERS,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
        },
        "text_config": {
            "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 8,
        },
    },
    "dinov2": {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 16,
    },
}  # fmt: skip
"""What makes an encoder's config tiny, by its type."""
SHORTER = {
    "whisper": {"chunk_length": 5},
    "clap": {},
    "clip": {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}},
    "dinov2": {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}},
}
"""What makes a preprocessor's samples as small as a tiny encoder takes them, by its type."""


def stand_in(card: Card, folder: Path) -> Path:
    """A random checkpoint of the card's architecture, with what reads its inputs."""
    path = folder / card.name
    if path.is_dir():
        return path
    with quietly():
        kind = card.config["model_type"]
        if (seeing := seeing_bases().get(kind.replace("_", "-"))) is not None:
            save(path, *seeing())
        elif kind == "aisfx":
            write_aisfx_folder(path)
        elif card.kind.endswith("language-model"):
            _base(kind).save_pretrained(path)
            tokenizer().save_pretrained(path)
        else:
            _encoder(card).save_pretrained(path)
            _preprocessor(card).save_pretrained(path)
    return path


@cache
def _base(model_type: str) -> torch.nn.Module:
    task = next(task for task, kind in types() if kind == model_type)
    return tiny(task, model_type).model


def _encoder(card: Card) -> torch.nn.Module:
    import transformers

    fields = {**card.config, **SMALLER[card.config["model_type"]]}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**fields)
    return getattr(transformers, card.config["architectures"][0])(config)


def _preprocessor(card: Card) -> Any:
    import transformers

    fields = {**card.preprocessor, **SHORTER[card.config["model_type"]]}
    if "image_processor_type" in fields:  # what needs no torchvision
        return getattr(transformers, fields["image_processor_type"] + "Pil")(**fields)
    return getattr(transformers, fields["feature_extractor_type"])(**fields)


def _composed(spec: ComposeSpec, folder: Path) -> Path:
    """The base that ``safe compose`` would make of the stand-ins, its projector untrained."""
    path = folder / "-".join(Path(part).name for part in (spec.vision, spec.language))
    if not path.is_dir():
        model, processor = compose(spec.vision, spec.language, layer=spec.layer)
        processor.chat_template = CHAT_TEMPLATE  # which a real vocabulary has the marks for
        write_checkpoint(path, model, processor, {})
    return path


def small_recipe(name: str, folder: Path) -> Recipe:
    """A recipe of the catalogue on stand-ins: one step, narrow, fused at the last layer."""
    path = catalogue.recipe_path(name)
    text = path.read_text("utf-8")
    for card in [read_card(path) for path in catalogue.cards().values()]:
        named = rf'(?<!use )= "{re.escape(card.name)}"'  # and no plugin of that name
        if re.search(named, text):
            text = re.sub(named, f'= "{stand_in(card, folder)}"', text)
    changes = {
        r"layers = \[.*?\]": "layers = [-1]",
        r"layer = \d+": "layer = 1",
        r"size = \d+(?=\nnear)": "size = 32",
        r"hidden_dim = [\d_]+": "hidden_dim = 8",
        r"max_steps = [\d_]+": "max_steps = 1\nbatch_size = 2\nretention_batch_size = 2",
        r"(?<!retention_)batch_size = 1\d": "",
        r"retention_batch_size = (?!2\n)\d+": "",
        r"warmup_steps = [\d_]+": "warmup_steps = 0",
        r"align_steps = [\d_]+": "align_steps = 1",
    }
    before, training, after = text.partition("[training]")  # a base has steps of its own
    for pattern, value in changes.items():
        if "step" not in pattern and "batch" not in pattern:
            before = re.sub(pattern, value, before)
        after = re.sub(pattern, value, after)
    text = before + training + after
    recipe = parse_recipe(text, str(path), path.parent)
    if (parts := recipe.base.compose) is None:
        return recipe
    text = text.replace(f'model = "{recipe.base.model}"', f'model = "{_composed(parts, folder)}"')
    return parse_recipe(text, str(path), path.parent)
