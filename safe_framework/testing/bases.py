"""Tiny random bases of several architectures, which answer in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, HIDDEN, LAYERS = 40, 16, 2
PAD, END, IMAGE = 0, 1, 39
WORDS = ["pad", "end", "unknown", *(f"w{number}" for number in range(3, VOCABULARY))]


def llama(**changes: Any) -> nn.Module:
    """A Llama whose two pairs of query heads share a key head each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _random(LlamaForCausalLM(LlamaConfig(**_LLAMA | changes)))


_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "bos_token_id": None,
}


def mixtral() -> nn.Module:
    """A Mixtral: each token goes to two of four experts, which take the tokens of all rows."""
    from transformers import MixtralConfig, MixtralForCausalLM

    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return _random(MixtralForCausalLM(MixtralConfig(**_LLAMA | experts)))


def gpt2() -> nn.Module:
    """A GPT-2, whose attention is one joined projection and whose positions are learned."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=2, n_positions=64,
        pad_token_id=PAD, eos_token_id=END, bos_token_id=END,
    )  # fmt: skip
    return _random(GPT2LMHeadModel(config))


def bart() -> nn.Module:
    """A Bart, whose decoder also attends to an encoder."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=VOCABULARY, d_model=HIDDEN, encoder_layers=1, decoder_layers=LAYERS,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_ffn_dim=24, max_position_embeddings=64, pad_token_id=PAD, eos_token_id=END,
        bos_token_id=END, decoder_start_token_id=END, forced_eos_token_id=None,
    )  # fmt: skip
    return _random(BartForConditionalGeneration(config))


def t5() -> nn.Module:
    """A T5, whose positions are a bias that the first layer hands to the others."""
    from transformers import T5Config, T5ForConditionalGeneration

    special: Any = {"decoder_start_token_id": PAD}
    config = T5Config(
        vocab_size=VOCABULARY, d_model=HIDDEN, d_kv=8, d_ff=24, num_layers=LAYERS, num_heads=2,
        pad_token_id=PAD, eos_token_id=END, **special,
    )  # fmt: skip
    return _random(T5ForConditionalGeneration(config))


def opt() -> nn.Module:
    """An OPT, whose decoder lies two levels deep."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, ffn_dim=24,
        num_attention_heads=2, word_embed_proj_dim=HIDDEN, max_position_embeddings=64,
        pad_token_id=PAD, eos_token_id=END, bos_token_id=END,
    )  # fmt: skip
    return _random(OPTForCausalLM(config))


def llava() -> nn.Module:
    """A Llava: a vision tower, and a Llama that reads its patches between the words."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=2,
        image_size=4, patch_size=2, projection_dim=8,
    )  # fmt: skip
    special: Any = {"pad_token_id": PAD, "eos_token_id": END}
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**_LLAMA), image_token_index=IMAGE,
        vision_feature_layer=-2, **special,
    )  # fmt: skip
    return _random(LlavaForConditionalGeneration(config))


BASES: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "gpt2": gpt2,
    "bart": bart,
    "t5": t5,
    "llava": llava,
}
"""One of each kind: how layers are named and nested, cross-attention, images."""


def _random(base: nn.Module) -> nn.Module:
    """Weights large enough that no two tokens tie and every layer matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=generator)
    return base.eval()


def tokenizer(**special: str) -> Any:
    """One token for each of ``WORDS``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="unknown"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = special or {"pad_token": "pad", "eos_token": "end", "unk_token": "unknown"}
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=words, **tokens)


def texts(base: nn.Module, rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Random ids of one length, with an image in each row where the base sees images."""
    config: Any = base.config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY - 1, (rows, length), generator=generator)
    batch = {"attention_mask": torch.ones_like(ids)}
    if hasattr(config, "vision_config"):
        ids = torch.cat([torch.full((rows, 4), IMAGE), ids], dim=1)
        batch["attention_mask"] = torch.ones_like(ids)
        batch["pixel_values"] = torch.randn(rows, 3, 4, 4, generator=generator)
    batch["input_ids"] = ids
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :2].flip(0).contiguous()
    return batch
