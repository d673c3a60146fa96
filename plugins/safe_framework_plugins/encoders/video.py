"""Pictures of a film, each seen by an image backbone, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from safe_framework.errors import CheckpointError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames
from safe_framework.interfaces.windows import Window
from safe_framework.pretrained import quietly, resolve
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio
from safe_framework.utils.positions import sinusoidal_positions

_GREY = 0.5  # mean and deviation of colours, if a checkpoint says none


class VideoEncoder(Encoder):
    """Frames of any transformers vision model over the pictures of a film, frozen by default.

    ``frames = pool(backbone(picture_t)) + wave(t)``: what the backbone gives for one picture is
    averaged in ``per_picture`` neighbouring groups, and sines and cosines of the picture's
    place are added. Pictures are resized to the backbone's own size, their sides not kept in
    proportion. Padding pictures are masked, and the backbone never sees them.

    Args:
        model: a card, a folder or a hub id; of one that also reads text, the vision half.
        pictures: the most pictures of a film.
        per_picture: frames that are given for each picture.
        positions: add the waves.
        trainable: train the backbone.

    Raises:
        CheckpointError: the model cannot be had, or gives no features of pictures.
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        *,
        model: str,
        pictures: int = 16,
        per_picture: int = 1,
        positions: bool = True,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"pictures": pictures, "per_picture": per_picture}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, not {value}")
        self.backbone, self._size, (self._mean, self._deviation) = _load(model)
        self.pictures, self.per_picture, self.positions = pictures, per_picture, positions
        self._trainable = trainable
        self.requires_grad_(trainable).eval()
        self.dim, most = self._measured(model)
        if per_picture > most:
            raise ValueError(f"`per_picture` must be at most {most}, not {per_picture}")

    def train(self, mode: bool = True) -> VideoEncoder:
        """Stay in evaluation mode while frozen: a frozen encoder drops nothing out."""
        return super().train(mode and self._trainable)

    def whole_window(self) -> Window:
        """So many pictures, at no rate of their own."""
        return Window(self.pictures, self.pictures * self.per_picture)

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Pictures in the backbone's size and colours, padded to the longest film.

        Args:
            samples: arrays (pictures, height, width, 3) of bytes, or of floats from 0 to 1.

        Returns:
            ``pixels`` (batch, pictures, 3, height, width) and ``real`` (batch, pictures).

        Raises:
            SampleError: a sample has another shape or type, values out of range, NaN, or more
                pictures than allowed.
        """
        films = [self._film(sample, f"`samples[{i}]`") for i, sample in enumerate(samples)]
        pixels = torch.zeros(len(films), max(map(len, films)), 3, *self._size)
        real = torch.zeros(pixels.shape[:2], dtype=torch.bool)
        for row, film in enumerate(films):
            pixels[row, : len(film)], real[row, : len(film)] = film, True
        return {"pixels": pixels, "real": real}

    def forward(self, **inputs: Tensor) -> Frames:
        """Encode pictures, (batch, pictures, 3, height, width) -> (batch, frames, dim)."""
        real = inputs["real"]
        seen = self._features(inputs["pixels"][real])  # (real, places, dim)
        pooled = functional.adaptive_avg_pool1d(seen.transpose(1, 2), self.per_picture)
        values = seen.new_zeros(*real.shape, self.per_picture, self.dim)
        values[real] = pooled.transpose(1, 2)
        if self.positions:
            values = values + sinusoidal_positions(values[:, :, 0]).unsqueeze(1)
        mask = real.repeat_interleave(self.per_picture, dim=1)  # (batch, frames)
        return Frames(values.flatten(1, 2), mask)  # (batch, frames, dim)

    def _features(self, pixels: Tensor) -> Tensor:
        """What the backbone gives for each picture, (pictures, places, dim)."""
        weight = next(self.backbone.parameters())
        found: Tensor = self.backbone(pixel_values=pixels.to(weight.dtype)).last_hidden_state
        return found.flatten(2).transpose(1, 2) if found.ndim == 4 else found

    def _measured(self, model: str) -> tuple[int, int]:
        """Width and number of the features of one picture; what they do not need is frozen."""
        try:
            seen = self._features(torch.zeros(1, 3, *self._size))
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"`{model}` gives no features of a picture: {error}",
                hint="choose a checkpoint of a vision model, such as a ViT, DINOv2 or CLIP",
            ) from error
        if trained := [p for p in self.parameters() if p.requires_grad]:
            needed = torch.autograd.grad(seen.sum(), trained, allow_unused=True)
            for parameter, gradient in zip(trained, needed, strict=True):
                parameter.requires_grad_(gradient is not None)
        return seen.shape[2], seen.shape[1]

    def _film(self, sample: Sample, name: str) -> Tensor:
        """A film as the backbone takes it, (pictures, 3, height, width)."""
        values = torch.from_numpy(_checked(sample, name, self.pictures)).permute(0, 3, 1, 2)
        resized = functional.interpolate(values, self._size, mode="bilinear", antialias=True)
        return (resized - self._mean) / self._deviation


def _checked(sample: Sample, name: str, most: int) -> npt.NDArray[np.float32]:
    values = sample.detach().cpu().numpy() if isinstance(sample, Tensor) else sample
    if not isinstance(values, np.ndarray):
        what = f"{name} is a {type(values).__name__}, not an array of pictures"
        raise SampleError(what, hint="give a numpy array (pictures, height, width, 3)")
    if values.ndim != 4 or values.shape[-1] != 3 or 0 in values.shape:
        what = f"{name} has shape {values.shape}, `video` takes (pictures, height, width, 3)"
        hint = "one picture is `film[None]`; a grey one needs its channel three times"
        raise SampleError(what, hint=hint)
    if len(values) > most:
        what = f"{name} has {len(values)} pictures, more than `pictures` = {most}"
        raise SampleError(what, hint=f"`pictures = {len(values)}`, or take every n-th picture")
    return _brightness(values, name)


def _brightness(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    """Colours from 0 to 1."""
    if values.dtype == np.uint8:
        return np.asarray(values, dtype=np.float32) / np.float32(255)
    if values.dtype.kind != "f":
        what = f"{name} holds {values.dtype}, not bytes or floats"
        raise SampleError(what, hint="`film.astype(np.uint8)`")
    if not np.isfinite(values).all():
        raise SampleError(f"{name} holds NaN or Inf", hint="drop or repair the film")
    if values.min() < 0 or values.max() > 1:
        what = f"{name} holds colours from {values.min():g} to {values.max():g}, not 0 to 1"
        raise SampleError(what, hint="give bytes from 0 to 255, or divide by 255")
    return np.asarray(values, dtype=np.float32)


def _load(model: str) -> tuple[nn.Module, tuple[int, int], tuple[Tensor, Tensor]]:
    """The backbone, its (height, width), and the mean and deviation of each colour."""
    set_aside_broken_torchaudio()
    from transformers import AutoConfig, AutoModel
    from transformers.image_processing_base import ImageProcessingMixin

    place = resolve(model)
    try:
        with quietly():
            config = AutoConfig.from_pretrained(place)
            found: Any = AutoModel.from_pretrained(place, dtype="float32", output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"`{model}` cannot be loaded as a vision model: {why}") from error
    whole, report = found
    if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
        raise CheckpointError(f"`{model}` lacks {len(missing)} weights, such as `{missing[0]}`")
    try:
        said = dict(ImageProcessingMixin.get_image_processor_dict(place)[0])
    except (OSError, ValueError):
        said = {}  # a checkpoint without a preprocessor: its config says the size
    colours = [
        torch.tensor(said.get(key) or [_GREY] * 3, dtype=torch.float32).reshape(1, 3, 1, 1)
        for key in ("image_mean", "image_std")
    ]
    backbone = getattr(whole, "vision_model", whole)
    for name in ("pooler", "head"):  # frames are taken before it; it may be random
        if isinstance(getattr(backbone, name, None), nn.Module):
            setattr(backbone, name, nn.Identity())
    size = _size(getattr(config, "vision_config", config), said, model)
    return backbone, size, (colours[0], colours[1])


def _size(config: Any, said: Mapping[str, Any], model: str) -> tuple[int, int]:
    """Height and width of the pictures that a backbone takes."""
    named = [getattr(config, "image_size", None), said.get("crop_size"), said.get("size")]
    for size in named:
        if isinstance(size, Mapping):
            size = size.get("shortest_edge") or (size.get("height"), size.get("width"))
        if isinstance(size, int):
            return size, size
        if isinstance(size, (list, tuple)) and len(size) == 2 and None not in size:
            return int(size[0]), int(size[1])
    raise CheckpointError(f"`{model}` does not say the size of its pictures: is it a vision model?")
