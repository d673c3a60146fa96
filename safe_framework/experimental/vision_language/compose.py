"""Put a pretrained image encoder and a language model together as a LLaVA (arXiv:2304.08485).

The image encoder's patches pass a projector of two linear layers and stand in the text as so many
``<image>`` tokens. Both parts keep their weights; only the projector is new.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safe_framework.errors import UnsupportedBaseError
from safe_framework.pretrained import quietly, resolve

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

IMAGE = "<image>"


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
        tower, reader = _vision(vision, image_size)
        speaker, tokenizer = _language(language)
    grid, extra = _grid(tower, reader, layer)
    model = _model(tower, speaker, _add_image_token(speaker, tokenizer), layer, extra, seed)
    model.config.image_seq_length = grid + extra - (extra > 0)
    _check_texts(model, speaker)
    return model, _processor(reader, tokenizer, tower, extra)


def compose_meta_model(vision: str, language: str, *, layer: int = -2) -> nn.Module:
    """What :func:`compose` would give, within ``meta_models()``: sizes without weights.

    The language model's table is counted with one word more, ``<image>``.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    with quietly():
        seen = AutoConfig.from_pretrained(resolve(vision))
        said = AutoConfig.from_pretrained(resolve(language))
        said.vocab_size += 1
        tower = AutoModel.from_pretrained(
            resolve(vision), config=getattr(seen, "vision_config", seen)
        )
        speaker = AutoModelForCausalLM.from_pretrained(resolve(language), config=said)
    return _model(tower, speaker, said.vocab_size - 1, layer, 1, 0)


def projector_of(model: Any) -> nn.Module:
    """The one part that is trained."""
    projector: nn.Module = model.model.multi_modal_projector
    return projector


def patches(model: Any, pixel_values: Tensor) -> Tensor:
    """What the projector is given of pictures, (batch, tokens, dim)."""
    config = model.config
    seen = model.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True)
    hidden: Tensor = seen.hidden_states[config.vision_feature_layer]
    return hidden[:, 1:] if config.vision_feature_select_strategy == "default" else hidden


def _vision(name: str, image_size: int | None) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    place = resolve(name)
    whole = AutoConfig.from_pretrained(place)
    config = getattr(whole, "vision_config", whole)  # of CLIP and its kin
    tower = AutoModel.from_pretrained(place, config=config).eval().requires_grad_(False)
    kind: Any = AutoImageProcessor  # neither it nor the processor declares its types
    reader = kind.from_pretrained(place)
    side = image_size or config.image_size
    if getattr(reader, "crop_size", None) is None:
        reader.size = {"height": side, "width": side}
    else:
        reader.size, reader.do_center_crop = {"shortest_edge": side}, True
        reader.crop_size = {"height": side, "width": side}
    return tower, reader


def _language(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = resolve(name)
    speaker: Any = AutoModelForCausalLM.from_pretrained(place, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(place)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return speaker.eval().requires_grad_(False), tokenizer


def _add_image_token(speaker: Any, tokenizer: Any) -> int:
    """The id of ``<image>``, with a mean row in the new model's table, which nothing reads."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    image = int(tokenizer.convert_tokens_to_ids(IMAGE))
    if image >= speaker.config.vocab_size:
        with torch.random.fork_rng(devices=[]):
            speaker.resize_token_embeddings(image + 1, mean_resizing=False)
    for table in (speaker.get_input_embeddings(), speaker.get_output_embeddings()):
        with torch.no_grad():
            table.weight[image] = table.weight[:image].mean(0)  # never the likeliest word
    return image


def _grid(tower: Any, reader: Any, layer: int) -> tuple[int, int]:
    """How many patches a picture has, and how many tokens the tower puts beside them."""
    from transformers.image_processing_utils import get_size_dict

    side = get_size_dict(getattr(reader, "crop_size", None) or reader.size)["height"]
    patch = getattr(tower.config, "patch_size", None)
    if not isinstance(patch, int):
        raise UnsupportedBaseError(
            f"`{type(tower).__name__}` has no patches of one size",
            hint="an image encoder must be a vision transformer, such as CLIP or DINOv2",
        )
    pixels = torch.zeros(1, 3, side, side, dtype=tower.dtype)
    try:
        with torch.no_grad():
            seen = tower(pixels, output_hidden_states=True, return_dict=True)
        tokens = seen.hidden_states[layer].shape[1]
    except (ValueError, IndexError) as error:
        raise UnsupportedBaseError(
            f"`{type(tower).__name__}` failed on pictures of {side} pixels: {error}",
            hint="leave out `image_size`, or name a `layer` that it has",
        ) from error
    patches = (side // patch) ** 2
    return patches, tokens - patches


def _model(
    tower: Any, speaker: Any, image: int, layer: int, extra: int, seed: int
) -> LlavaForConditionalGeneration:
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    table, head = speaker.get_input_embeddings(), speaker.get_output_embeddings()
    tied = head.weight is table.weight and hasattr(speaker.base_model, "embed_tokens")
    text = deepcopy(speaker.config)
    text.tie_word_embeddings = tied  # a LLaVA finds the table only under that name
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=image,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if extra else "full",
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    _check_kind(model.model.language_model, speaker.base_model)
    _check_kind(model.model.vision_tower, tower)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.model.multi_modal_projector = LlavaMultiModalProjector(config)
    model.model.vision_tower = tower.to(speaker.dtype)
    model.model.language_model = speaker.base_model
    model.lm_head = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
    model.lm_head.weight = head.weight if tied else nn.Parameter(head.weight.detach().clone())
    model.config.dtype = speaker.dtype
    model.generation_config = speaker.generation_config
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]  # as torch types it


def _check_kind(wanted: nn.Module, found: nn.Module) -> None:
    if type(wanted) is not type(found):
        raise UnsupportedBaseError(
            f"a LLaVA would hold a {type(wanted).__name__}, not this {type(found).__name__}",
            hint="choose another pretrained part",
        )


def _check_texts(model: Any, speaker: Any) -> None:
    """On text alone the composed model must say what the language model says."""
    words = torch.arange(1, 9).unsqueeze(0) % speaker.config.vocab_size
    with torch.no_grad():
        ours, theirs = model(input_ids=words).logits, speaker(input_ids=words).logits
    if not torch.allclose(ours.float(), theirs.float(), atol=1e-3, rtol=1e-3):
        raise UnsupportedBaseError(
            f"a LLaVA around `{type(speaker).__name__}` gives other logits on text alone",
            hint="its head does more than one matrix product: choose another language model",
        )


def _processor(reader: Any, tokenizer: Any, tower: Any, extra: int) -> LlavaProcessor:
    from transformers import LlavaProcessor

    kind: Any = LlavaProcessor
    return kind(  # type: ignore[no-any-return]  # as above
        reader,
        tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="default" if extra else "full",
        num_additional_image_tokens=extra,
        image_token=IMAGE,
    )
