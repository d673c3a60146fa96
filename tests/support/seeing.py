"""Tiny random bases that see, each with the real processor of its type, made in memory.

``seeing_bases()`` names them. A picture of any size goes in; every tower sees 8 by 8 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safe_framework.pretrained.without_torchvision import without_videos

Base = tuple[nn.Module, Any]
"""A tiny model and the processor of its type."""

PAD, END, BEGIN = "<pad>", "<end>", "<begin>"
_WORDS = """
what is this that which a the an on of in sat ran cat dog mat picture image sound high low
red blue green black white yes no describe hear see user assistant system
"""
WORDS = _WORDS.split()
SIDE, PATCH = 8, 4
"""Pixels of a side of a picture as the towers see it, and of a patch of it."""


def seeing_bases() -> dict[str, Callable[[], Base]]:
    """For each image-text type, by name, what makes a tiny model and its real processor."""
    return {
        "llava": llava,
        "llava-next": llava_next,
        "blip-2-opt": blip2_opt,
        "blip-2-t5": blip2_t5,
        "instructblip": instructblip,
        "qwen2-vl": qwen2_vl,
        "qwen2.5-vl": qwen2_5_vl,
        "qwen3-vl": qwen3_vl,
        "smolvlm": smolvlm,
        "idefics3": idefics3,
        "gemma3": gemma3,
        "paligemma": paligemma,
        "internvl": internvl,
        "florence2": florence2,
        "mllama": mllama,
    }


def reading_bases() -> dict[str, Callable[[], Base]]:
    """The encoder-decoders that read text alone, each with its tokenizer."""
    return {"t5": t5, "bart": bart}


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


def tokenizer(
    special: Sequence[str] = (), *, begins: bool = False, ends: bool = False, **named: str
) -> Any:
    """A byte-level tokenizer: one token for a word of ``WORDS``, a token a byte for others.

    Args:
        special: tokens that no text is split into.
        begins: put ``BEGIN`` in front of a text.
        ends: put ``END`` behind it.
        **named: special tokens that the type's processor looks up, as ``image_token``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
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
    if begins or ends:
        around = f"{BEGIN if begins else ''} $A {END if ends else ''}".strip()
        numbered = [(token, words.token_to_id(token)) for token in (BEGIN, END)]
        words.post_processor = processors.TemplateProcessing(
            single=around, pair=f"{around} $B", special_tokens=numbered
        )
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


def llava() -> Base:
    """LLaVA: the patches stand between the words, a placeholder token each."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer(["<image>"], begins=True)
    processor = LlavaProcessor(
        image_processor=_images("CLIPImageProcessor", **_CROPPED),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>"),
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_TOWER, projection_dim=8),
        text_config=LlamaConfig(**_language(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        **_ends(words),
    )
    return _random(LlavaForConditionalGeneration(config)), processor


def llava_next() -> Base:
    """LLaVA-NeXT: a picture is cut into tiles, as many as suit its shape."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
    )

    words = tokenizer(["<image>"], begins=True)
    tiles = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    processor = LlavaNextProcessor(
        image_processor=_images("LlavaNextImageProcessor", **_CROPPED, image_grid_pinpoints=tiles),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>"),
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_TOWER, projection_dim=8),
        text_config=LlamaConfig(**_language(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=tiles,
        **_ends(words),
    )
    return _random(LlavaNextForConditionalGeneration(config)), processor


def blip2_opt() -> Base:
    """BLIP-2 with OPT: a few queries read the picture, and stand before the text."""
    from transformers import OPTConfig

    words = tokenizer(["<image>"], begins=True)
    language = OPTConfig(
        vocab_size=len(words),
        hidden_size=_WIDTH,
        word_embed_proj_dim=_WIDTH,
        num_hidden_layers=2,
        ffn_dim=48,
        num_attention_heads=4,
        max_position_embeddings=512,
        **_ends(words),
    )
    return _blip2(words, language)


def blip2_t5() -> Base:
    """BLIP-2 with Flan-T5: its encoder reads the picture and the question."""
    words = tokenizer(["<image>"], ends=True)
    return _blip2(words, _t5_config(words))


def _blip2(words: Any, language: Any) -> Base:
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
    )

    processor = Blip2Processor(_images("BlipImageProcessor", **_RESIZED), words, _QUERIES)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**_TOWER),
        qformer_config=Blip2QFormerConfig(**_QFORMER, vocab_size=len(words)),
        text_config=language,
        num_query_tokens=_QUERIES,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return _random(Blip2ForConditionalGeneration(config)), processor


def instructblip() -> Base:
    """InstructBLIP: the queries read the question too, in a tokenizer of their own."""
    from transformers import (
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        InstructBlipQFormerConfig,
        InstructBlipVisionConfig,
        LlamaConfig,
    )

    words, queried = tokenizer(["<image>"], begins=True), tokenizer(begins=True, ends=True)
    processor = InstructBlipProcessor(
        _images("BlipImageProcessor", **_RESIZED), words, queried, _QUERIES
    )
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**_TOWER),
        qformer_config=InstructBlipQFormerConfig(**_QFORMER, vocab_size=len(queried)),
        text_config=LlamaConfig(**_language(words)),
        num_query_tokens=_QUERIES,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return _random(InstructBlipForConditionalGeneration(config)), processor


def qwen2_vl() -> Base:
    """Qwen2-VL: as many patches as the picture has, numbered by row and column."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLProcessor,
    )

    words = tokenizer(_QWEN)
    tower = {**_QWEN_TOWER, "embed_dim": 16, "hidden_size": _WIDTH, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        vision_config=tower, text_config=_qwen_language(words), **_qwen_ids(words)
    )
    processor = _qwen_processor(Qwen2VLProcessor, words)
    return _random(Qwen2VLForConditionalGeneration(config)), processor


def qwen2_5_vl() -> Base:
    """Qwen2.5-VL: its tower attends within windows, but for some layers."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

    words = tokenizer(_QWEN)
    tower = {
        **_QWEN_TOWER,
        "hidden_size": 16,
        "out_hidden_size": _WIDTH,
        "intermediate_size": 24,
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        vision_config=tower, text_config=_qwen_language(words), **_qwen_ids(words)
    )
    processor = _qwen_processor(Qwen2_5_VLProcessor, words)
    return _random(Qwen2_5_VLForConditionalGeneration(config)), processor


def qwen3_vl() -> Base:
    """Qwen3-VL: features of several layers of its tower are added to its first layers."""
    from transformers import (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
    )

    words = tokenizer(_QWEN)
    tower = {
        **_QWEN_TOWER,
        "hidden_size": 16,
        "out_hidden_size": _WIDTH,
        "intermediate_size": 24,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(
        vision_config=tower, text_config=_qwen_language(words), **_qwen_ids(words)
    )
    processor = _qwen_processor(Qwen3VLProcessor, words)
    return _random(Qwen3VLForConditionalGeneration(config)), processor


_QWEN = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
_QWEN_TOWER = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def _qwen_processor(kind: Any, words: Any) -> Any:
    images = _images(
        "Qwen2VLImageProcessor",
        patch_size=PATCH,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": (4 * PATCH) ** 2, "longest_edge": (8 * PATCH) ** 2},
    )
    template = chat_template("".join(_QWEN[:3]))
    return without_videos(kind, image_processor=images, tokenizer=words, chat_template=template)


def _qwen_language(words: Any) -> dict[str, Any]:
    sections = [_HEAD // 4, _HEAD // 8, _HEAD // 8]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    return {**_language(words), "head_dim": _HEAD, "rope_parameters": rope}


def _qwen_ids(words: Any) -> dict[str, Any]:
    start, image, end, video = words.convert_tokens_to_ids(_QWEN)
    return {
        "vision_start_token_id": start,
        "image_token_id": image,
        "vision_end_token_id": end,
        "video_token_id": video,
    }


def smolvlm() -> Base:
    """SmolVLM: a picture is cut into rows and columns, and seen as a whole too."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMProcessor,
    )

    words = tokenizer(_IDEFICS, begins=True)
    processor = without_videos(
        SmolVLMProcessor,
        image_processor=_images("SmolVLMImageProcessor", **_SPLIT),
        tokenizer=words,
        image_seq_len=1,
        chat_template=chat_template("<image>"),
    )
    config = SmolVLMConfig(**_idefics_parts(words))
    return _random(SmolVLMForConditionalGeneration(config)), processor


def idefics3() -> Base:
    """Idefics3, of which SmolVLM is the small kind."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
    )

    words = tokenizer(_IDEFICS, begins=True)
    processor = Idefics3Processor(
        _images("Idefics3ImageProcessor", **_SPLIT),
        words,
        image_seq_len=1,
        chat_template=chat_template("<image>"),
    )
    config = Idefics3Config(**_idefics_parts(words))
    return _random(Idefics3ForConditionalGeneration(config)), processor


_IDEFICS = [
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
]
_SPLIT = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}


def _idefics_parts(words: Any) -> dict[str, Any]:
    return {
        "vision_config": _TOWER,
        "text_config": {"model_type": "llama", **_language(words)},
        "scale_factor": 2,
        "image_token_id": words.convert_tokens_to_ids("<image>"),
        "pad_token_id": words.pad_token_id,
    }


def gemma3() -> Base:
    """Gemma 3: the tokens of a picture attend to each other in both directions."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3Processor,
    )

    words = tokenizer(
        begins=True,
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    processor = Gemma3Processor(
        _images("Gemma3ImageProcessor", **_RESIZED),
        words,
        chat_template=chat_template("<start_of_image>"),
        image_seq_length=4,
    )
    language = {
        **_language(words),
        "head_dim": _HEAD,
        "query_pre_attn_scalar": _HEAD,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    config = Gemma3Config(
        text_config=language,
        vision_config={**_TOWER, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
    )
    return _random(Gemma3ForConditionalGeneration(config)), processor


def paligemma() -> Base:
    """PaliGemma: the picture and the question attend to each other in both directions."""
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
    )

    words = tokenizer(["<image>"])
    images = _images("SiglipImageProcessor", **_RESIZED)
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, words)  # adds a thousand tokens for places
    language = {"model_type": "gemma", **_language(words), "head_dim": _HEAD}
    config = PaliGemmaConfig(
        text_config=language,
        vision_config={"model_type": "siglip_vision_model", **_TOWER, "vision_use_head": False},
        projection_dim=_WIDTH,
        hidden_size=_WIDTH,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        **_ends(words),
    )
    return _random(PaliGemmaForConditionalGeneration(config)), processor


def internvl() -> Base:
    """InternVL: a picture is cut into tiles, and four patches make a token."""
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
    )

    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = without_videos(
        InternVLProcessor,
        image_processor=_images("GotOcr2ImageProcessor", **_RESIZED, max_patches=2),
        tokenizer=words,
        image_seq_length=1,
        chat_template=chat_template("<IMG_CONTEXT>"),
    )
    config = InternVLConfig(
        vision_config={**_TOWER, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        text_config={"model_type": "qwen2", **_language(words)},
        image_token_id=words.context_image_token_id,
        image_seq_length=1,
    )
    return _random(InternVLForConditionalGeneration(config)), processor


def florence2() -> Base:
    """Florence-2: an encoder reads the picture and the task, a decoder answers."""
    from transformers import (
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )

    words = tokenizer(begins=True, ends=True, image_token="<image>")
    images = _images("CLIPImageProcessor", **_CROPPED)
    images.image_seq_length = 5  # four places and their mean
    processor = Florence2Processor(images, words)
    tower = {
        "depths": [1, 1],
        "patch_size": [3, 3],
        "patch_stride": [2, 2],
        "patch_padding": [1, 1],
        "patch_prenorm": [False, True],
        "embed_dim": [8, 8],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "window_size": 2,
        "drop_path_rate": 0.0,
        "projection_dim": _WIDTH,
        "max_position_embeddings": 4,
    }
    config = Florence2Config(
        text_config=_bart_config(words).to_dict(),
        vision_config=tower,
        image_token_id=words.image_token_id,
    )
    return _random(Florence2ForConditionalGeneration(config)), processor


def mllama() -> Base:
    """Llama 3.2 Vision: layers between the others attend to the picture."""
    from transformers import (
        MllamaConfig,
        MllamaForConditionalGeneration,
        MllamaProcessor,
    )

    words = tokenizer(["<|python_tag|>"])
    known = len(words)
    words.add_special_tokens({"additional_special_tokens": ["<|image|>"]})  # beyond the head
    processor = MllamaProcessor(
        _images("MllamaImageProcessor", **_RESIZED, max_image_tiles=2),
        words,
        chat_template=chat_template("<|image|>"),
    )
    tower = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        "intermediate_layers_indices": [0],
        "vision_output_dim": 16,
    }
    language = {
        **_language(words),
        "vocab_size": known,
        "num_hidden_layers": 3,
        "cross_attention_layers": [1],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = MllamaConfig(
        vision_config=tower,
        text_config=language,
        image_token_index=words.convert_tokens_to_ids("<|image|>"),
    )
    return _random(MllamaForConditionalGeneration(config)), processor


def t5() -> Base:
    """T5, which reads text alone."""
    from transformers import T5ForConditionalGeneration

    words = tokenizer(ends=True)
    return _random(T5ForConditionalGeneration(_t5_config(words))), words


def bart() -> Base:
    """BART, which reads text alone."""
    from transformers import BartForConditionalGeneration

    words = tokenizer(begins=True, ends=True)
    return _random(BartForConditionalGeneration(_bart_config(words))), words


_WIDTH, _HEAD, _QUERIES = 32, 8, 4
_TOWER = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
"""A vision tower's numbers."""
_QFORMER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "encoder_hidden_size": 8,
    "max_position_embeddings": 512,
}
_RESIZED = {"size": {"height": SIDE, "width": SIDE}}
"""How an image processor of Siglip's or BLIP's kind brings a picture to its size."""
_CROPPED = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
"""How one of CLIP's kind does."""


def _images(name: str, **options: Any) -> Any:
    """The image processor that works without torchvision, which older versions call the plain."""
    import transformers

    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    return kind(**options)


def _language(words: Any) -> dict[str, Any]:
    """A language model's numbers, as Llama and its kin name them."""
    return {
        "vocab_size": len(words),
        "hidden_size": _WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": _WIDTH // _HEAD,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        **_ends(words),
    }


def _t5_config(words: Any) -> Any:
    from transformers import T5Config

    return T5Config(
        vocab_size=len(words),
        d_model=_WIDTH,
        d_kv=_HEAD,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        decoder_start_token_id=words.pad_token_id,
    )


def _bart_config(words: Any) -> Any:
    from transformers import BartConfig

    return BartConfig(
        vocab_size=len(words),
        d_model=_WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=512,
        decoder_start_token_id=words.eos_token_id,
        forced_eos_token_id=words.eos_token_id,
        **_ends(words),
    )


def _ends(words: Any) -> dict[str, int]:
    return {
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id,
    }


def _random(model: nn.Module) -> nn.Module:
    """Weights so large that another picture visibly moves the logits, and open gates."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=generator)
            elif parameter.numel() == 1:
                parameter.fill_(0.5)
    return model.eval()
