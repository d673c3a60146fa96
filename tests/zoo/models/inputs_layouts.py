"""The shapes in which models take an image: the same pixels whole, in tiles or in patches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from tests.zoo.models.shrink_sizes import IMAGE, PATCH

if TYPE_CHECKING:
    from torch import Tensor

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
        place = torch.tensor([[False, True, True, True, True, False]] * self.rows)
        pixels = noise(self.rows, *self._image)
        yield {"pixel_values": pixels, "image_embeds_position_mask": place}
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
