"""Inputs of one call: plain text for any model, with an image for those that take one.

Models take the same pixels whole, in tiles or in patches: each of these layouts is a guess.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import attrs

from tests.zoo.models.exceptions import STREAMS
from tests.zoo.models.shrink import IMAGE, PATCH, SMALL, VOCABULARY, special_ids

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


_GRID = 4
"""Patches along a side of an image."""


@attrs.frozen
class Layouts:
    """Every layout for one vision tower.

    Attributes:
        rows: how many images, one a row.
        size: pixels along a side.
        channels: colours.
        patch: pixels along a patch's side.
        time: frames of a patch.
    """

    rows: int
    size: int
    channels: int
    patch: int
    time: int

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The keyword arguments of each layout, the most particular first."""
        yield from self._patches()
        yield from self._tiles()
        yield from self._whole()
        yield from self._rare()

    def _patches(self) -> Iterator[dict[str, Tensor]]:
        """All patches of all images in a row, and how many of each: time, height, width."""
        import torch

        count, area = self.rows * _GRID**2, self.channels * self.patch**2
        grid = torch.tensor([[1, _GRID, _GRID]] * self.rows)
        merged = torch.full((self.rows,), 2)
        for width in (area * self.time, area):
            flat = {"pixel_values": noise(count, width)}
            yield {**flat, "image_grid_thw": grid, "image_merge_sizes": merged}
            yield {**flat, "image_grid_thw": grid}
            yield {**flat, "image_grid_hw": grid[:, 1:]}
        square = noise(count, self.channels, self.patch, self.patch)
        yield {"pixel_values": square, "image_grid_thw": grid}

    def _tiles(self) -> Iterator[dict[str, Tensor]]:
        """Several cuts of one image."""
        import torch

        one = torch.ones(self.rows, 1, dtype=torch.long)
        tall = one[:, :, None].expand(self.rows, 1, 4)
        quarters = noise(self.rows, 1, 4, *self._image)
        yield {"pixel_values": quarters, "aspect_ratio_ids": one, "aspect_ratio_mask": tall}
        seen = torch.ones(self.rows, 1, self.size, self.size, dtype=torch.bool)
        yield {"pixel_values": noise(self.rows, 1, *self._image), "pixel_attention_mask": seen}
        yield {"pixel_values": noise(self.rows, 2, *self._image), "image_sizes": self._sizes}

    def _whole(self) -> Iterator[dict[str, Tensor]]:
        """The image as it is."""
        pixels = noise(self.rows, *self._image)
        yield {"pixel_values": pixels, "image_sizes": self._sizes}
        yield {"pixel_values": pixels, "high_res_pixel_values": pixels}
        yield {"pixel_values": pixels}
        yield {"pixel_values": noise(self.rows, 1, *self._image)}

    def _rare(self) -> Iterator[dict[str, Tensor]]:
        """Layouts of one or two types each; texts are of six tokens."""
        import torch

        area = self.channels * self.patch**2
        shapes, real = self._sizes // self.size * _GRID, torch.ones(self.rows, _GRID**2).long()
        flat = {"pixel_values": noise(self.rows, _GRID**2, area)}
        yield {**flat, "spatial_shapes": shapes, "pixel_attention_mask": real}
        one = noise(self.rows, 1, *self._image)
        yield {"pixel_values": one, "image_attention_mask": torch.ones(self.rows, 6, 1)}
        mask = torch.tensor([[False, True, True, True, True, False]] * self.rows)
        pixels = noise(self.rows, *self._image)
        yield {"pixel_values": pixels, "image_embeds_position_mask": mask}
        numbered = noise(self.rows, _GRID**2, 2 + area)  # each patch's row and column come first
        numbered[:, :, :2] = 1
        yield {"flattened_patches": numbered}
        yield {"input_features": noise(self.rows, 128, 8 * 6)}

    @property
    def _image(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    @property
    def _sizes(self) -> Tensor:
        import torch

        return torch.full((self.rows, 2), self.size)


def layouts_of(config: Any, rows: int) -> Layouts:
    """The layouts for the vision tower that a config describes."""
    names = ("vision_config", "vq_config", "encoder")
    vision = next((getattr(config, n) for n in names if getattr(config, n, None)), config)
    return Layouts(
        rows=rows,
        size=first_number(vision, ("image_size",), IMAGE),
        channels=first_number(vision, ("num_channels", "in_channels", "in_chans"), 3),
        patch=first_number(vision, ("patch_size", "spatial_patch_size"), PATCH),
        time=first_number(vision, ("temporal_patch_size", "patch_temporal"), 1),
    )


def first_number(config: Any, names: tuple[str, ...], default: int) -> int:
    """The first of the fields that holds a number, or a list of them."""
    for name in names:
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, list | tuple) else value
        if isinstance(value, int):
            return value
    return default


def noise(*shape: int) -> Tensor:
    """The same random numbers for the same shape."""
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


Inputs = dict[str, "Tensor"]

_IMAGE_IDS = ("image_token_id", "image_token_index", "image_patch_id", "video_token_index")
_STARTS = ("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index")
_ENDS = ("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index")
_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")


def with_image(model: nn.Module, text: Inputs) -> Iterator[Inputs]:
    """The text's inputs with an image in each row, one guess after another at its layout."""
    for layout in layouts_of(model.config, len(next(iter(text.values())))):
        if set(layout) <= _parameters(model.forward):
            try:
                yield _with_images(model, text, layout | _second_text(model, text))
            except Exception:  # a wrong guess fails in a way of its own
                continue


def _second_text(model: nn.Module, text: Inputs) -> Inputs:
    """The question once more for an image reader that reads it too, and the boxes of its tokens."""
    import torch

    wanted, ids = _parameters(model.forward), text.get("input_ids")
    found = {"qformer_input_ids": ids, "bbox": torch.zeros(2, 6, 4, dtype=torch.long)}
    return {name: value for name, value in found.items() if name in wanted and value is not None}


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _with_images(model: nn.Module, text: Inputs, layout: Inputs) -> Inputs:
    """The text with as many image tokens as the image has features, behind its first token."""
    import torch

    if "input_ids" not in text:
        return text | layout
    config = model.config
    image = first_number(config, _IMAGE_IDS, -1)
    count = _features(model, layout, len(text["input_ids"])) if image >= 0 else 0
    inserted = [
        first_number(config, _STARTS, -1),
        *[image] * count,
        first_number(config, _ENDS, -1),
    ]
    inserted = [number for number in inserted if number >= 0] if count else []
    ids = text["input_ids"]
    middle = torch.tensor(inserted, dtype=torch.long).expand(len(ids), -1)
    ids = torch.cat([ids[:, :1], middle, ids[:, 1:]], dim=1)
    whole = text | layout | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kinds = _parameters(model.forward) & set(_TOKEN_TYPES)
    return whole | {name: (ids == image).long() for name in kinds}


def _features(model: Any, layout: Inputs, rows: int) -> int:
    """How many features the model makes of one row's image."""
    import torch

    homes = (model, getattr(model, "model", None))
    names = ("get_image_features", "get_video_features")
    makers = [getattr(home, name) for name in names for home in homes if hasattr(home, name)]
    if not makers:
        return 0
    taken = _parameters(makers[0])
    every = any(name == "kwargs" for name in taken)
    given = {name: value for name, value in layout.items() if name in taken or every}
    with torch.no_grad():
        found = makers[0](**given)
    for name in ("pooler_output", "last_hidden_state"):
        found = found if getattr(found, name, None) is None else getattr(found, name)
    parts = found if isinstance(found, list | tuple) else [found]
    return int(sum(part.numel() // part.shape[-1] for part in parts)) // rows
