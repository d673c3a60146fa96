"""Depth maps through any vision backbone of transformers, as normalised inverse depth.

Inverse depth spends its range where things are near (Ranftl et al. 2020, Towards Robust Monocular
Depth Estimation, arXiv:1907.01341).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from safe_framework import Encoder, Frames
from safe_framework.data.samples import read_array
from safe_framework.errors import DataError, SampleError
from safe_framework.interfaces.samples import Sample
from safe_framework.pretrained.vision_backbone import VisionBackbone, fitted


class DepthEncoder(Encoder):
    """One frame for each patch of a depth map, from a frozen vision backbone.

    ``brightness = clamp((1 / depth - 1 / far) / (1 / near - 1 / far), 0, 1)``, in all three
    colours: what is near is bright, and a brightness always means the same distance. Pixels of
    depth 0, below 0, NaN or Inf were not measured; a patch without any other is a masked frame.
    A map is scaled to fit the backbone's square, whole and undistorted.

    Args:
        model: a card such as ``"dinov2-small"``, a folder or a hub id of a ViT, DINOv2, CLIP,
            SigLIP, ConvNeXt or other vision model.
        layer: which hidden states to give, as an index into transformers' ``hidden_states``: 0
            before the first layer, n after the n-th; None for the model's final output.
        size: side of the square that the model sees, in pixels; None for its own.
        near: distance that is brightest, in metres; what is nearer is as bright.
        far: distance that is darkest, in metres; what is farther is as dark.
        unit: metres in 1 of a depth map; 0.001 for maps in millimetres.
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
        near: float = 0.5,
        far: float = 10.0,
        unit: float = 1.0,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < near < far:
            raise ValueError(f"`near` must be between 0 and `far` = {far}, not {near}")
        if not 0 < unit < float("inf"):
            raise ValueError(f"`unit` must be above 0, not {unit}")
        self.backbone = VisionBackbone(model, layer=layer, size=size)
        self.dim = self.backbone.dim
        self.near, self.far, self.unit = near, far, unit
        self.trainable = trainable
        self.requires_grad_(False).eval()
        if trainable:
            self.backbone.thaw()

    def train(self, mode: bool = True) -> DepthEncoder:
        """Stay in evaluation mode unless trainable: a frozen encoder drops nothing out."""
        return super().train(mode and self.trainable)

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Normalised pixels of depth maps, in a square.

        Args:
            samples: depth maps: arrays (height, width) in units of ``unit`` metres, or names of
                ``.npy``, ``.npz`` or image files that hold one.

        Returns:
            ``pixels`` (batch, 3, size, size) and ``valid`` (batch, size, size).

        Raises:
            SampleError: a sample is no depth map.
        """
        size, pixels, valid = self.backbone.size, [], []
        for place, sample in enumerate(samples):
            depth = torch.from_numpy(_map(sample, f"`samples[{place}]`")).float() * self.unit
            known = torch.isfinite(depth) & (depth > 0)
            brightness, real = fitted(self._brightness(depth)[None], known, size)
            colours = self.backbone.normalise(brightness.expand(3, -1, -1))
            pixels.append(torch.where(real, colours, 0.0))
            valid.append(real)
        return {"pixels": torch.stack(pixels), "valid": torch.stack(valid)}

    def forward(self, **inputs: Tensor) -> Frames:
        """Encode pixels, (batch, 3, size, size) -> (batch, patches, dim)."""
        return Frames(self.backbone(inputs["pixels"]), self.backbone.patch_mask(inputs["valid"]))

    def _brightness(self, depth: Annotated[Tensor, "height width"]) -> Tensor:
        inverse = 1 / depth.clamp(self.near, self.far)
        return (inverse - 1 / self.far) / (1 / self.near - 1 / self.far)


def _map(sample: Sample, name: str) -> Annotated[npt.NDArray[np.float64], "height width"]:
    values: Any = sample
    if isinstance(sample, (str, os.PathLike)):
        try:
            values = read_array(sample)
        except DataError as error:
            raise SampleError(f"{name}: {error.message}", hint=error.hint) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        kind = getattr(values, "dtype", type(values).__name__)
        raise SampleError(
            f"{name} is {kind}, a depth map an array of numbers", hint="numpy.asarray(depth)"
        )
    if values.ndim != 2 or not values.size:
        raise SampleError(
            f"{name} has the shape {values.shape}, a depth map (height, width)",
            hint="give one map for each text, without a channel axis",
        )
    return values.astype(np.float64)
