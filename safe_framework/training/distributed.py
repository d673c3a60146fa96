"""FSDP2: each device keeps a share of the base's layers, and gathers one when it is called.

Only the frozen layers are shared out, by ``fully_shard`` of torch. Adapters are small: they stay
whole on every device, so optimizers, retention methods and checkpoints meet plain tensors, and
their gradients are averaged after the backward pass. Accelerate would shard them too, and does
not shard on CPUs at all; so what ``accelerate launch`` was told is read here and carried out here.

Gathering is a conversation: every device must run the same layers, forward and backward. A device
whose batch has no sample of a sense would skip the backward pass of layers that others wait for;
a hook on the lowest layer that any sense can change lets every backward pass come down to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from safe_framework.core.layer_hooks_attachment import LayerCall, hidden_of, with_hidden
from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError
from safe_framework.training.distributed_holding import hold

_SWITCH = "ACCELERATE_USE_FSDP"


@attrs.frozen
class Sharding:
    """How layers are shared out.

    Attributes:
        reshard: give the others' shares up after a layer's forward pass, and gather them again
            in the backward pass.
    """

    reshard: bool = True


@contextmanager
def sharding_wanted() -> Iterator[Sharding | None]:
    """What ``accelerate launch`` was told of FSDP, which Accelerate does not see in the block.

    Raises:
        SafeError: it was told what is not done here.
    """
    asked = os.environ.get(_SWITCH, "false")
    if asked.lower() not in ("true", "1"):
        yield None
        return
    if os.environ.get("FSDP_VERSION") != "2":
        raise SafeError("FSDP of version 1 is not supported", hint="set `fsdp_version: 2`")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise SafeError(
            "layers that are shared out cannot be offloaded too",
            hint="set `fsdp_offload_params: false`",
        )
    del os.environ[_SWITCH]
    try:
        reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
        yield Sharding(reshard)
    finally:
        os.environ[_SWITCH] = asked


def shard_layers(model: SafeModel, sharding: Sharding, device: torch.device) -> RemovableHandle:
    """Share the base's layers out; the weights and what they compute stay what they are.

    Args:
        model: whose base is whole on every process.
        sharding: how.
        device: this process's.

    Returns:
        The hook that lets every backward pass come down to the lowest layer that a sense can
        change; to be removed after training.

    Raises:
        SafeError: the number of layers that run would depend on the batch, or a layer trains.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if model.split_rows:
        raise SafeError(
            "`split_rows` calls the base once or twice, as a batch wants it, but devices that "
            "share its layers must all call it alike",
            hint="launch without FSDP",
        )
    layers = model.stack.of(model.base)
    if any(parameter.requires_grad for parameter in layers.parameters()):
        raise SafeError("layers that train cannot be shared out", hint="launch without FSDP")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    lowest = layers[lowest_changed(model)]
    handle = lowest.register_forward_pre_hook(_Descent(model), with_kwargs=True)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=sharding.reshard)
    return handle


def lowest_changed(model: SafeModel) -> int:
    """The lowest layer whose input some sense can change; 0 where one has markers."""
    modalities = [model.modality(name) for name in model.modalities]
    if any(modality.markers is not None for modality in modalities):
        return 0
    return min(layer for modality in modalities for layer in modality.fusion.layers)


class _Descent:
    """A pre-hook that makes a layer's hidden states depend on the adapters, by zero."""

    def __init__(self, model: SafeModel) -> None:
        self.parameters = list(model.trainable_parameters().values())

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall | None:
        hidden = hidden_of(args, kwargs)
        if not torch.is_grad_enabled() or not isinstance(hidden, Tensor) or hidden.requires_grad:
            return None
        return with_hidden(args, kwargs, hold(hidden, self.parameters))
