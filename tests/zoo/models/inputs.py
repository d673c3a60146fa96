"""Inputs of one call: plain text for any model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tests.zoo.models.exceptions import STREAMS
from tests.zoo.models.shrink_ids import SMALL, special_ids
from tests.zoo.models.shrink_sizes import VOCABULARY

if TYPE_CHECKING:
    from torch import Tensor, nn

Padding = Literal["none", "left", "right"]


def text_inputs(
    model: nn.Module, rows: int, length: int, *, padding: Padding = "none", seed: int = 0
) -> dict[str, Tensor]:
    """Random ordinary tokens, none of which the config names as special.

    Args:
        model: a transformers model.
        rows: how many texts.
        length: tokens of the longest; with padding, each further row has one less.
        padding: the side of the padding.
        seed: of the tokens.

    Returns:
        ``input_ids`` and ``attention_mask``, (rows, length); for an encoder-decoder also
        ``decoder_input_ids``.
    """
    import torch

    config: Any = model.config
    generator = torch.Generator().manual_seed(seed)
    choices = torch.tensor(ordinary_ids(config))

    streams = STREAMS.get(config.model_type, 1)

    def draw() -> Tensor:
        """Random ids of the choices."""
        drawn = torch.randint(len(choices), (rows * streams, length), generator=generator)
        return choices[drawn]

    mask = _mask(rows, length, padding)
    padded = mask.repeat_interleave(streams, dim=0) == 0
    ids = draw().masked_fill(padded, padding_id(config))
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs | {"decoder_input_ids": draw()} if is_encoder_decoder(config) else inputs


def ordinary_ids(config: Any) -> list[int]:
    """Ids of the text vocabulary that no nested config calls special."""
    special = special_ids(config.to_dict())
    return [n for n in range(SMALL, vocabulary_size(config)) if n not in special]


def vocabulary_size(config: Any) -> int:
    """The text vocabulary's size."""
    sizes = (getattr(part, "vocab_size", None) for part in (text_part(config), config))
    return next((size for size in sizes if isinstance(size, int)), VOCABULARY)


def text_part(config: Any) -> Any:
    """The config of the part that writes."""
    return config.get_text_config(decoder=True)


def padding_id(config: Any) -> int:
    """The id of padding: the config's, or 0."""
    found = (getattr(part, "pad_token_id", None) for part in (config, text_part(config)))
    return next((number for number in found if isinstance(number, int) and number >= 0), 0)


def is_encoder_decoder(config: Any) -> bool:
    """Whether a decoder reads an encoder's text, also inside an image-text model."""
    parts = (config, getattr(config, "text_config", None))
    return any(getattr(part, "is_encoder_decoder", False) for part in parts)


def _mask(rows: int, length: int, padding: Padding) -> Tensor:
    import torch

    mask = torch.ones(rows, length, dtype=torch.long)
    if padding != "none":
        for row in range(rows):
            pads = min(row, length - 1)
            mask[row, :pads] = 0
    return mask.flip(1) if padding == "right" else mask
