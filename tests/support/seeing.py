"""Tiny random bases that see, each with the real processor of its type, made in memory.

``seeing_bases()`` names them. A picture of any size goes in; every tower sees 8 by 8 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

Maker = Callable[[], tuple[nn.Module, Any]]
"""Makes a tiny model and the processor of its type."""

PAD, END, BEGIN = "<pad>", "<end>", "<begin>"
_WORDS = """
what is this that which a the an on of in sat ran cat dog mat picture image sound high low
red blue green black white yes no describe hear see user assistant system
"""
WORDS = _WORDS.split()
SIDE, PATCH = 8, 4
"""Pixels of a side of a picture as the towers see it, and of a patch of it."""


def seeing_bases() -> dict[str, Maker]:
    """For each image-text type, by name, what makes a tiny model and its real processor."""
    return {"llava": llava}


def save(folder: Path, model: nn.Module, processor: Any) -> Path:
    """The folder, with the model and its processor in it as ``save_pretrained`` writes them."""
    saved: Any = model
    saved.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(colour: str, width: int = SIDE, height: int = SIDE) -> Any:
    """A picture of one colour."""
    from PIL import Image

    return Image.new("RGB", (width, height), colour)


def tokenizer(special: Sequence[str] = (), **named: str) -> Any:
    """A byte-level tokenizer: one token for a word of ``WORDS``, a token a byte for others.

    Args:
        special: tokens that no text is split into.
        **named: special tokens that the type's processor looks up, as ``image_token``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_first = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer: Any = trainers.BpeTrainer(
        special_tokens=[PAD, END, BEGIN, *special, *named.values()],
        initial_alphabet=bytes_first.alphabet(),
        show_progress=False,
    )
    words: Any = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = bytes_first, decoders.ByteLevel()
    words.train_from_iterator([*WORDS, *(f" {word}" for word in WORDS)], trainer)
    kind: Any = PreTrainedTokenizerFast
    return kind(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        bos_token=BEGIN,
        extra_special_tokens=named or list(special),
    )


def chat_template(image: str) -> str:
    """Turns of ``role: parts <end>``, a picture being the text ``image``."""
    return (
        "{% for message in messages %}{{ message['role'] + ': ' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '" + image + "' }}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{{ '" + END + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )


def llava() -> tuple[nn.Module, Any]:
    """LLaVA: the patches stand between the words, a placeholder token each."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer(["<image>"])
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**_cropped()),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>"),
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_tower(), projection_dim=8),
        text_config=LlamaConfig(**_llama(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        **_ends(words),
    )
    return _random(LlavaForConditionalGeneration(config)), processor


def _cropped() -> dict[str, Any]:
    """How an image processor of CLIP's kind brings a picture to its size."""
    return {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def _tower() -> dict[str, Any]:
    """A vision tower's numbers."""
    return {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }


def _llama(words: Any) -> dict[str, Any]:
    """A language model's numbers, as Llama and its kin name them."""
    return {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        **_ends(words),
    }


def _ends(words: Any) -> dict[str, int]:
    return {
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id,
    }


def _random(model: nn.Module) -> nn.Module:
    """Weights so large that another picture visibly moves the logits."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=generator)
    return model.eval()
