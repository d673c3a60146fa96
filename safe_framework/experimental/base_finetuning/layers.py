"""Layers of the base that are trained in place; their original weights are kept in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.adapter import copy_tensors
from safe_framework.core.base_change import BaseChange, ChangedCall
from safe_framework.errors import SafeError
from safe_framework.utils.tensors import cpu_copy

WEIGHTS = "base_layers.safetensors"


class LayersChange(BaseChange):
    """A base some of whose layers have other weights.

    The originals are kept, which costs the memory of these layers once more, until
    ``forget_original``.

    Args:
        base: whose layers.
        path: of their list in it.
        layers: numbers of those that may change.
    """

    method = "layers"
    reversible = False

    def __init__(self, base: nn.Module, path: str, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.paths = tuple(
            f"{path}.{layer}.{name}"
            for layer in self.layers
            for name, parameter in base.get_submodule(f"{path}.{layer}").named_parameters()
            if parameter.is_floating_point()
        )
        self._kept: dict[str, Tensor] | None = {
            path: p.detach().clone() for path, p in self.tensors(base).items()
        }

    def tensors(self, base: nn.Module) -> dict[str, nn.Parameter]:
        """The layers' own parameters, by their paths in the base."""
        return {path: base.get_parameter(path) for path in self.paths}

    def call(self) -> ChangedCall | None:
        """None: every call of the base runs the changed layers."""
        return None

    @contextmanager
    def original(self, base: nn.Module) -> Iterator[None]:
        """Use the original weights within the block, for every thread.

        Raises:
            SafeError: they were forgotten.
        """
        kept, changed = self._originals(), {k: p.data for k, p in self.tensors(base).items()}
        self._use_weights(base, kept)
        try:
            yield
        finally:
            self._use_weights(base, changed)

    def _originals(self) -> dict[str, Tensor]:
        if self._kept is None:
            raise SafeError(
                "the original weights of the changed layers were not kept",
                hint="load the base anew",
            )
        return self._kept

    def _use_weights(self, base: nn.Module, weights: dict[str, Tensor]) -> None:
        for path, parameter in self.tensors(base).items():
            # Not a copy: a backward pass under way still needs the weights of its forward pass.
            parameter.data = weights[path].to(parameter.device)

    @contextmanager
    def taking_gradients(self, base: nn.Module) -> Iterator[None]:
        """A block within which the layers take gradients; they are frozen again after it."""
        for parameter in self.tensors(base).values():
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in self.tensors(base).values():
                parameter.requires_grad_(False)
                parameter.grad = None

    @torch.no_grad()
    def remove(self, base: nn.Module) -> None:
        """Write the original weights back; warn that the base stays changed if they are gone."""
        if self._kept is None:
            warnings.warn(
                f"the base keeps its change ({self.describe()}): its original weights were not "
                "kept; load it anew to have them",
                RuntimeWarning,
                stacklevel=3,
            )
            return
        for path, parameter in self.tensors(base).items():
            parameter.copy_(self._kept[path])

    def forget_original(self) -> None:
        """Free the memory of the original weights; the base is then changed for good.

        Saving, measuring the drift and ``detach`` to the original need them.
        """
        self._kept = None

    def write(self, base: nn.Module, folder: Path) -> None:
        """Write the layers' whole weights, since a difference would be rounded."""
        from safetensors.torch import save_file

        tensors = {path: cpu_copy(tensor) for path, tensor in self.tensors(base).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    def facts(self) -> dict[str, Any]:
        """The method and its layers."""
        return {"method": self.method, "layers": list(self.layers)}

    def describe(self) -> str:
        """Which layers were trained."""
        many = "layers" if len(self.layers) > 1 else "layer"
        return f"{many} {', '.join(map(str, self.layers))} of the base trained in place"


def read(
    base: nn.Module, config: Mapping[str, Any], folder: Path, *, owner: str, layers_path: str
) -> LayersChange:
    """The change that ``write`` put into an adapter's folder; ``owner`` is not needed."""
    from safetensors.torch import load_file

    change = LayersChange(base, layers_path, config["layers"])
    target = {key: tensor.detach() for key, tensor in change.tensors(base).items()}
    copy_tensors(target, load_file(folder / WEIGHTS), folder / WEIGHTS)
    return change
