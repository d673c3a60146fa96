"""Pictures through any vision backbone of transformers.

Such as DINOv2 (Oquab et al. 2023, arXiv:2304.07193) or ViT (Dosovitskiy et al. 2020,
arXiv:2010.11929).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from safe_framework import Encoder, Frames
from safe_framework.data.images import read_image
from safe_framework.errors import DataError, SampleError
from safe_framework.interfaces.samples import Sample
from safe_framework.pretrained.vision_backbone import VisionBackbone, fitted


class ImageEncoder(Encoder):
    """One frame for each patch of a picture, from a frozen vision backbone.

    A picture is scaled to fit the backbone's square, whole and undistorted; the patches that it
    does not fill are masked frames.

    Args:
        model: a card such as ``"dinov2-small"``, a folder or a hub id of a ViT, DINOv2, CLIP,
            SigLIP, ConvNeXt or other vision model.
        layer: which hidden states to give, as an index into transformers' ``hidden_states``: 0
            before the first layer, n after the n-th; None for the model's final output.
        size: side of the square that the model sees, in pixels; None for its own.
        trainable: train the backbone too, in a training loop of your own.

    Raises:
        CheckpointError: the model cannot be had, or gives no patches.
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        *,
        model: str,
        layer: int | None = None,
        size: int | None = None,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = VisionBackbone(model, layer=layer, size=size)
        self.dim = self.backbone.dim
        self.trainable = trainable
        self.requires_grad_(False).eval()
        if trainable:
            self.backbone.thaw()

    def train(self, mode: bool = True) -> ImageEncoder:
        """Stay in evaluation mode unless trainable: a frozen encoder drops nothing out."""
        return super().train(mode and self.trainable)

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Normalised pixels of pictures, in a square.

        Args:
            samples: pictures: arrays (height, width, 3) or (height, width) of 8-bit integers,
                Pillow images, or names of files.

        Returns:
            ``pixels`` (batch, 3, size, size) and ``valid`` (batch, size, size).

        Raises:
            SampleError: a sample is no picture.
        """
        size, pixels, valid = self.backbone.size, [], []
        for place, sample in enumerate(samples):
            colours = _colours(sample, f"`samples[{place}]`")
            values = torch.from_numpy(colours.copy()).permute(2, 0, 1) / 255  # (3, height, width)
            everywhere = torch.ones(values.shape[1:], dtype=torch.bool)
            fit, real = fitted(self.backbone.normalise(values), everywhere, size)
            pixels.append(fit)
            valid.append(real)
        return {"pixels": torch.stack(pixels), "valid": torch.stack(valid)}

    def forward(self, **inputs: Tensor) -> Frames:
        """Encode pixels, (batch, 3, size, size) -> (batch, patches, dim)."""
        return Frames(self.backbone(inputs["pixels"]), self.backbone.patch_mask(inputs["valid"]))


def _colours(sample: Sample, name: str) -> Annotated[npt.NDArray[np.uint8], "height width 3"]:
    values: Any = sample
    if not isinstance(sample, np.ndarray):
        try:
            values = read_image(sample)
        except DataError as error:
            raise SampleError(f"{name}: {error.message}", hint=error.hint) from error
    if values.dtype != np.uint8:
        raise SampleError(
            f"{name} holds {values.dtype}, a picture holds 8-bit integers",
            hint="for colours from 0 to 1, `(255 * values).round().astype(numpy.uint8)`",
        )
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)  # (height, width, 3), all greys
    if values.ndim != 3 or values.shape[2] != 3 or not values.size:
        raise SampleError(
            f"{name} has the shape {values.shape}, a picture (height, width, 3)",
            hint="drop the transparency: `values[..., :3]`",
        )
    colours: npt.NDArray[np.uint8] = values
    return colours
