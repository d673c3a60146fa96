"""Put a pretrained image encoder and a language model together as a LLaVA (arXiv:2304.08485).

The image encoder's patches pass a projector of two linear layers and stand in the text as so many
``<image>`` tokens. Both parts keep their weights; only the projector is new.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from safe_framework.errors import UnsupportedBaseError
from safe_framework.pretrained import quietly, resolve

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

IMAGE = "<image>"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == "image" %}<image>{% elif part.type == "text" %}{{ part.text }}{% endif -%}
{%- endfor -%}
{%- endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
"""ChatML with pictures, for language models whose vocabulary has its marks."""


def compose(
    vision: str, language: str, *, image_size: int | None = None, layer: int = -2, seed: int = 0
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA whose projector is fresh, and its processor.

    Args:
        vision: the image encoder: a card, a folder or a hub id.
        language: the language model, likewise.
        image_size: side of the square pictures, in pixels; None for the encoder's own.
        layer: which hidden states of the encoder are projected.
        seed: of the fresh projector.

    Raises:
        UnsupportedBaseError: the parts cannot be put together in this form.
    """
    with quietly():
        vision_tower, image_processor = _load_vision_tower(vision, image_size, layer)
        language_model, tokenizer = _load_language_model(language)
    grid, extra = _count_tokens(vision_tower, image_processor, layer)
    model = _build_llava(
        vision_tower,
        language_model,
        _add_image_token(language_model, tokenizer),
        layer,
        extra,
        seed,
    )
    model.config.image_seq_length = grid + extra - (extra > 0)
    _check_text_logits(model, language_model)
    return model, _make_processor(image_processor, tokenizer, vision_tower, extra)


def compose_meta_model(vision: str, language: str, *, layer: int = -2) -> nn.Module:
    """What :func:`compose` would give, within ``meta_models()``: sizes without weights.

    The language model's embeddings are counted with one token more, ``<image>``.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    with quietly():
        vision_config = AutoConfig.from_pretrained(resolve(vision))
        language_config = AutoConfig.from_pretrained(resolve(language))
        language_config.vocab_size += 1
        vision_tower = AutoModel.from_pretrained(
            resolve(vision),
            config=_up_to(layer, getattr(vision_config, "vision_config", vision_config)),
        )
        language_model = AutoModelForCausalLM.from_pretrained(
            resolve(language), config=language_config
        )
    return _build_llava(vision_tower, language_model, language_config.vocab_size - 1, layer, 1, 0)


def projector_of(model: Any) -> nn.Module:
    """The one part that is trained."""
    projector: nn.Module = model.model.multi_modal_projector
    return projector


def image_features(model: Any, pixel_values: Tensor) -> Tensor:
    """The hidden states of pictures that enter the projector, (batch, tokens, dim)."""
    config = model.config
    outputs = model.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True)
    hidden: Tensor = outputs.hidden_states[config.vision_feature_layer]
    return hidden[:, 1:] if config.vision_feature_select_strategy == "default" else hidden


def call_on_features(model: Any, features: Tensor, **texts: Any) -> Any:
    """Call the composed base on texts and on image features that were computed before.

    It returns what a call with the pictures' pixels returns.
    """
    projector = projector_of(model)
    kind = next(projector.parameters()).dtype
    tokens: Any = list(projector(features.to(kind)))  # one picture each, as the model gives them
    image = BaseModelOutputWithPooling(pooler_output=tokens)
    return model(**texts, mm_encoder_outputs={"image": image})


class FeatureModel(nn.Module):
    """A composed base that is called on image features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        """The model's call on pictures and their texts."""
        return call_on_features(self.model, **inputs)


@torch.no_grad()
def standardise(projector: Any, features: Tensor) -> None:
    """Write into the first of the two layers that its input is standardised."""
    first = projector.linear_1
    first.weight.div_(features.std(0) + 1e-6)
    first.bias.sub_(first.weight @ features.mean(0))


def _load_vision_tower(name: str, image_size: int | None, layer: int) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    path = resolve(name)
    whole = AutoConfig.from_pretrained(path)
    config = _up_to(layer, getattr(whole, "vision_config", whole))  # of CLIP and its kin
    vision_tower = AutoModel.from_pretrained(path, config=config).eval().requires_grad_(False)
    kind: Any = AutoImageProcessor  # neither it nor the processor declares its types
    image_processor = kind.from_pretrained(path)
    side = image_size or config.image_size
    if getattr(image_processor, "crop_size", None) is None:
        image_processor.size = {"height": side, "width": side}
    else:
        image_processor.size, image_processor.do_center_crop = {"shortest_edge": side}, True
        image_processor.crop_size = {"height": side, "width": side}
    return vision_tower, image_processor


def _up_to(layer: int, config: Any) -> Any:
    """The image encoder's config without the layers above ``layer``, which nothing reads."""
    if not 0 < layer < config.num_hidden_layers:
        return config
    of_depth = ("stage_names", "out_features", "out_indices")  # which follow from it
    kept = {name: value for name, value in config.to_dict().items() if name not in of_depth}
    return type(config).from_dict(kept | {"num_hidden_layers": layer})


def _load_language_model(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve(name)
    language_model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return language_model.eval().requires_grad_(False), tokenizer


def _add_image_token(language_model: Any, tokenizer: Any) -> int:
    """The id of ``<image>``, with a mean row in the new model's table, which nothing reads."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    image = int(tokenizer.convert_tokens_to_ids(IMAGE))
    if image >= language_model.config.vocab_size:
        with torch.random.fork_rng(devices=[]):
            language_model.resize_token_embeddings(image + 1, mean_resizing=False)
    for table in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
        with torch.no_grad():
            table.weight[image] = table.weight[:image].mean(0)  # never the likeliest token
    return image


def _count_tokens(vision_tower: Any, image_processor: Any, layer: int) -> tuple[int, int]:
    """How many patches a picture has, and how many other tokens the vision tower has."""
    from transformers.image_processing_utils import get_size_dict

    side = get_size_dict(getattr(image_processor, "crop_size", None) or image_processor.size)[
        "height"
    ]
    patch = getattr(vision_tower.config, "patch_size", None)
    if not isinstance(patch, int):
        raise UnsupportedBaseError(
            f"`{type(vision_tower).__name__}` has no patches of one size",
            hint="an image encoder must be a vision transformer, such as CLIP or DINOv2",
        )
    pixels = torch.zeros(1, 3, side, side, dtype=vision_tower.dtype)
    try:
        with torch.no_grad():
            outputs = vision_tower(pixels, output_hidden_states=True, return_dict=True)
        tokens = outputs.hidden_states[layer].shape[1]
    except (ValueError, IndexError) as error:
        raise UnsupportedBaseError(
            f"`{type(vision_tower).__name__}` failed on pictures of {side} pixels: {error}",
            hint="leave out `image_size`, or name a `layer` that it has",
        ) from error
    image_features = (side // patch) ** 2
    return image_features, tokens - image_features


def _build_llava(
    vision_tower: Any, language_model: Any, image: int, layer: int, extra: int, seed: int
) -> LlavaForConditionalGeneration:
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    table, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
    tied = head.weight is table.weight and hasattr(language_model.base_model, "embed_tokens")
    text = deepcopy(language_model.config)
    text.tie_word_embeddings = tied  # a LLaVA finds the table only under that name
    config = LlavaConfig(
        vision_config=vision_tower.config,
        text_config=text,
        image_token_index=image,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if extra else "full",
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    _check_type(model.model.language_model, language_model.base_model)
    _check_type(model.model.vision_tower, vision_tower)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.model.multi_modal_projector = LlavaMultiModalProjector(config)
    model.model.vision_tower = vision_tower.to(language_model.dtype)
    model.model.language_model = language_model.base_model
    model.lm_head = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
    model.lm_head.weight = head.weight if tied else nn.Parameter(head.weight.detach().clone())
    model.config.dtype = language_model.dtype
    model.generation_config = language_model.generation_config
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]  # as torch types it


def _check_type(wanted: nn.Module, found: nn.Module) -> None:
    if type(wanted) is not type(found):
        raise UnsupportedBaseError(
            f"a LLaVA would hold a {type(wanted).__name__}, not this {type(found).__name__}",
            hint="choose another pretrained part",
        )


def _check_text_logits(model: Any, language_model: Any) -> None:
    """On text alone the composed model must give the language model's logits."""
    ids = torch.arange(1, 9).unsqueeze(0) % language_model.config.vocab_size
    with torch.no_grad():
        composed, alone = model(input_ids=ids).logits, language_model(input_ids=ids).logits
    if not torch.allclose(composed.float(), alone.float(), atol=1e-3, rtol=1e-3):
        raise UnsupportedBaseError(
            f"a LLaVA around `{type(language_model).__name__}` gives other logits on text alone",
            hint="its head does more than one matrix product: choose another language model",
        )


def _make_processor(
    image_processor: Any, tokenizer: Any, vision_tower: Any, extra: int
) -> LlavaProcessor:
    from transformers import LlavaProcessor

    kind: Any = LlavaProcessor
    chats = "<|im_start|>" in tokenizer.get_vocab()
    return kind(  # type: ignore[no-any-return]  # as above
        image_processor,
        tokenizer,
        patch_size=vision_tower.config.patch_size,
        vision_feature_select_strategy="default" if extra else "full",
        num_additional_image_tokens=extra,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE if chats else None,
    )
