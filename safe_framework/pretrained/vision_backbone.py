"""Any vision backbone of transformers as patch frames, and how pictures are brought to its size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, interpolate, pad

from safe_framework.errors import CheckpointError
from safe_framework.pretrained import quietly, resolve
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio
from safe_framework.utils.torch_private import forward_hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_OTHERS = 16  # positions before the patches: a class token, a distillation token, registers
_UNUSED = {"classifier", "head", "pooler", "text_model"}  # hidden states do not depend on these


class VisionBackbone(nn.Module):
    """The patches of one layer of a vision backbone, row by row from the top left.

    Positions that are no patch, such as a class token, are left out. The layers above the
    chosen one are dropped where the states that are read stay the same bits without them.

    Args:
        model: a card, a folder or a hub id of a backbone, or of a model that holds one, such
            as CLIP.
        layer: which hidden states to give, as an index into transformers' ``hidden_states``;
            None for the backbone's final output.
        size: side of the square that it reads, in pixels; None for what its own processor says.

    Attributes:
        dim: width of a patch.
        size: side of the square that it reads, in pixels.
        grid: rows and columns of patches.
        mean: of each colour channel, from 0 to 1.
        deviation: of each colour channel.

    Raises:
        CheckpointError: the model cannot be had, or gives no patches.
        ValueError: an option is out of its range.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: str, *, layer: int | None = None, size: int | None = None) -> None:
        super().__init__()
        place = resolve(model)
        self.network = _network(model, place)
        facts = _processing(model, place)
        self.size = size if size is not None else _own_size(facts, self.network.config)
        if self.size < 1:
            raise ValueError(f"`size` must be at least 1, not {size}")
        scale = 255 * facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 255
        normalised = facts.get("do_normalize", True)
        mean = facts["image_mean"] if normalised else [0.0]
        deviation = facts["image_std"] if normalised else [1.0]
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) / scale)
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1) / scale)
        self._layer = layer
        states = self._probe(model, size)
        self.grid, self.dim = _layout(states, self.network.config, self.size)
        self._drop_layers_above(states)

    def forward(self, pixels: Annotated[Tensor, "batch 3 size size"]) -> Tensor:
        """Patches of normalised pixels, (batch, rows * columns, dim)."""
        states = self._states(pixels)
        if states.ndim == 3:
            return states[:, -self.grid[0] * self.grid[1] :]
        channels_first = states.shape[2] == states.shape[3]
        return states.flatten(2).mT if channels_first else states.flatten(1, 2)

    def thaw(self) -> None:
        """Let every parameter train that the patches depend on; a pooler's, say, stay frozen."""
        parameters = list(self.network.parameters())
        for parameter in parameters:
            parameter.requires_grad_(True)
        seen = self(self._ramp()).sum()
        needed = torch.autograd.grad(seen, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, needed, strict=True):
            parameter.requires_grad_(gradient is not None)

    def normalise(self, pixels: Annotated[Tensor, "channels height width"]) -> Tensor:
        """Values from 0 to 1 as the backbone expects them."""
        return (pixels - self.mean.cpu()) / self.deviation.cpu()

    def patch_mask(self, valid: Annotated[Tensor, "batch size size"]) -> Tensor:
        """True for each patch that has a valid pixel, (batch, rows * columns)."""
        pooled = adaptive_max_pool2d(valid.float().unsqueeze(1), self.grid)
        return pooled.flatten(1) > 0

    def __getstate__(self) -> dict[str, Any]:
        """Drop the hooks by which transformers reads hidden states: they do not pickle.

        It installs them again when they are next needed.
        """
        for module in self.network.modules():
            hooks = forward_hooks(module)
            for key, hook in list(hooks.items()):
                if hook.__module__ == "transformers.utils.output_capturing":
                    del hooks[key]
            vars(module).pop("_output_capturing_hooks_installed", None)
        return self.__dict__.copy()

    def _states(self, pixels: Tensor) -> Tensor:
        network: Any = self.network
        out = network(
            pixel_values=pixels,
            output_hidden_states=self._layer is not None,
            interpolate_pos_encoding=True,  # a model without this ignores it
        )
        states: Tensor = (
            out.last_hidden_state if self._layer is None else out.hidden_states[self._layer]
        )
        return states

    @torch.no_grad()
    def _probe(self, model: str, size: int | None) -> Tensor:
        """What it gives for one picture, after checking the options against it."""
        wanted, network = self._layer, self.network
        try:
            out = network(
                pixel_values=self._ramp(), output_hidden_states=True, interpolate_pos_encoding=True
            )
            count = len(out.hidden_states)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            if size is not None:
                raise ValueError(f"`size` = {size} is nothing that it can read: {error}") from error
            raise CheckpointError(f"`{model}` gives no hidden states: {error}") from error
        if wanted is not None and not -count <= wanted < count:
            raise ValueError(f"`layer` must be between {-count} and {count - 1}, not {wanted}")
        self._layer = None if wanted is None else wanted % count
        states: Tensor = out.last_hidden_state if wanted is None else out.hidden_states[wanted]
        return states

    def _ramp(self) -> Tensor:
        """A picture to try it on, (1, 3, size, size)."""
        device = next(self.network.parameters()).device  # meta, where only sizes are asked for
        ramp = torch.linspace(-1, 1, 3 * self.size**2, device=device)
        return ramp.view(1, 3, self.size, self.size)

    @torch.no_grad()
    def _drop_layers_above(self, states: Tensor) -> None:
        if self._layer is None:
            return
        found = _layers(self.network, self._layer)
        picture = self._ramp()
        for kept in (self._layer, self._layer + 1) if found else ():
            path, layers = found
            _put(self.network, path, layers[:kept])
            if self._still_gives(states, picture):
                return
            _put(self.network, path, layers)

    def _still_gives(self, states: Tensor, picture: Tensor) -> bool:
        """Whether the layers that are left suffice; a backbone may count them otherwise."""
        try:
            again = self._states(picture)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False
        same_kind = again.shape == states.shape
        return same_kind and (states.is_meta or torch.equal(again, states))


def fitted(
    values: Annotated[Tensor, "channels height width"],
    valid: Annotated[Tensor, "height width"],
    size: int,
) -> tuple[Tensor, Tensor]:
    """Scale a picture into a square, whole and undistorted; what it does not fill is not valid.

    A pixel is the mean of the valid ones that it is made of, and 0 where there is none.

    Returns:
        Values (channels, size, size) and which of them are valid (size, size).
    """
    height, width = values.shape[1:]
    share = size / max(height, width)
    target = (max(1, round(height * share)), max(1, round(width * share)))
    weight = valid.float().unsqueeze(0)
    both = torch.cat([torch.where(valid, values, 0.0) * weight, weight]).unsqueeze(0)
    if target != (height, width):
        both = interpolate(both, target, mode="bilinear", antialias=True, align_corners=False)
    sums, weight = both[0, :-1], both[0, -1]
    kept = weight > 1e-3
    top, left = (size - target[0]) // 2, (size - target[1]) // 2
    border = (left, size - target[1] - left, top, size - target[0] - top)
    mean = torch.where(kept, sums / weight.clamp_min(1e-3), 0.0)
    return pad(mean, border), pad(kept, border)


def _network(model: str, place: str) -> nn.Module:
    set_aside_broken_torchaudio()
    from transformers import AutoModel

    try:
        with quietly():
            loaded: Any = AutoModel.from_pretrained(
                place, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"`{model}` cannot be loaded as a vision model: {why}") from error
    whole, report = loaded
    missing = [key for key in report["missing_keys"] if not _UNUSED & set(key.split("."))]
    if missing:
        raise CheckpointError(f"`{model}` lacks {len(missing)} weights, such as `{min(missing)}`")
    parts = [getattr(whole, name, None) for name in ("vision_model", "vision_tower")]
    network: nn.Module = next((part for part in parts if isinstance(part, nn.Module)), whole)
    if getattr(network, "main_input_name", None) != "pixel_values":
        raise CheckpointError(f"`{model}` is a {whole.config.model_type}, which reads no pictures")
    return network.eval()


def _processing(model: str, place: str) -> Mapping[str, Any]:
    """How the model's own processor treats a picture; read, since to build it needs an extra."""
    set_aside_broken_torchaudio()
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        with quietly():
            facts: Mapping[str, Any] = ImageProcessingMixin.get_image_processor_dict(place)[0]
        if facts.get("do_normalize", True) and not {"image_mean", "image_std"} <= facts.keys():
            raise ValueError("it lacks `image_mean` or `image_std`")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"`{model}` does not say how its pictures are normalised: {error}",
            hint="put the preprocessor_config.json of its processor beside the weights",
        ) from error
    return facts


def _own_size(facts: Mapping[str, Any], config: Any) -> int:
    sizes = [facts.get("crop_size") if facts.get("do_center_crop") else None, facts.get("size")]
    for size in (*sizes, getattr(config, "image_size", None)):
        if isinstance(size, dict):
            size = size.get("height") or size.get("shortest_edge")
        if isinstance(size, int):
            return size
    raise ValueError("`size` must be given: the model does not say what it reads")


def _layout(states: Tensor, config: Any, size: int) -> tuple[tuple[int, int], int]:
    """Rows and columns of patches, and the width of one."""
    if states.ndim == 4:  # maps of features, channels first or last
        first = states.shape[2] == states.shape[3]
        grid = states.shape[2:] if first else states.shape[1:3]
        return (int(grid[0]), int(grid[1])), int(states.shape[1 if first else 3])
    side = math.isqrt(states.shape[1]) if states.ndim == 3 else 0
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and states.ndim == 3:
        side = size // patch
        while side**2 > states.shape[1]:  # merged from stage to stage
            side //= 2
    if not side or not 0 <= states.shape[1] - side**2 <= _MOST_OTHERS:
        raise CheckpointError(
            f"a {config.model_type} gives hidden states {tuple(states.shape)} for a picture of"
            f" {size} x {size}, which are no grid of patches",
            hint="choose another `layer`, or a backbone such as DINOv2, ViT, CLIP or ConvNeXt",
        )
    return (side, side), int(states.shape[2])


def _layers(network: nn.Module, at_least: int) -> Any:
    """Path and list of the layers: the outermost list that is long enough."""
    lists = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > at_least
    ]
    return min(lists, key=lambda entry: entry[0].count("."), default=None)


def _put(network: nn.Module, path: str, layers: nn.ModuleList) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, layers)
