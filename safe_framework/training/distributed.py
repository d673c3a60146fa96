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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import attrs
import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn
from torch.utils.hooks import RemovableHandle

from safe_framework.core.layer_hooks import LayerCall, hidden_of, with_hidden
from safe_framework.core.model import SafeModel
from safe_framework.data.frame_cache import FrameCache, Progress, RawSample, RawSampleStore
from safe_framework.errors import SafeError
from safe_framework.interfaces.types import Frames, Sample

# Trainable parameters that take part in every step, whatever its batch holds.
#
# Processes that average their gradients wait for each other's. A process whose batch has no sample
# of a sense would have none to give for its parts, and all would wait forever; so it gives zeros.


class _TouchParameters(torch.autograd.Function):
    """The same bits, and a zero gradient for each parameter."""

    @staticmethod
    def forward(context: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        """The value as it is."""
        context.parameters = parameters
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Its gradient, and zeros for the parameters."""
        return gradient, *(p.new_zeros(()).expand_as(p) for p in context.parameters)


def touch_parameters(value: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """``value``, bit for bit, on which every parameter depends with a gradient of zero.

    >>> parameter = nn.Parameter(torch.tensor([float("inf")]))
    >>> hold(torch.tensor(2.0), [parameter]).backward()
    >>> parameter.grad
    tensor([0.])
    """
    held: Tensor = _TouchParameters.apply(value, *parameters)  # type: ignore[no-untyped-call]  # torch's own
    return held


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, in one go and in a fixed order."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        flat = torch.cat([gradient.flatten() for gradient in alike])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        parts = torch.split(flat, [gradient.numel() for gradient in alike])
        for gradient, part in zip(alike, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


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
def requested_sharding() -> Iterator[Sharding | None]:
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
    lowest = layers[lowest_fused_layer(model)]
    handle = lowest.register_forward_pre_hook(_RequireGradient(model), with_kwargs=True)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=sharding.reshard)
    return handle


def lowest_fused_layer(model: SafeModel) -> int:
    """The lowest layer whose input some sense can change; 0 where one has markers."""
    modalities = [model.modality(name) for name in model.modalities]
    if any(modality.markers is not None for modality in modalities):
        return 0
    return min(layer for modality in modalities for layer in modality.fusion.layers)


class _RequireGradient:
    """A pre-hook that makes a layer's hidden states depend on the adapters, by zero."""

    def __init__(self, model: SafeModel) -> None:
        self.parameters = list(model.trainable_parameters().values())

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall | None:
        hidden = hidden_of(args, kwargs)
        if not torch.is_grad_enabled() or not isinstance(hidden, Tensor) or hidden.requires_grad:
            return None
        return with_hidden(args, kwargs, touch_parameters(hidden, self.parameters))


# The equal parts in which a step is computed: by devices, and by each device one after another.
#
# What a step is depends on the recipe alone, so a run on two devices, or in two parts on one, comes
# to the weights of a run that takes each step whole, up to rounding.


_Row = TypeVar("_Row")


@attrs.frozen
class StepShard:
    """One part of a step.

    Attributes:
        number: of this part, from 0.
        count: how many parts the step has.
    """

    number: int = 0
    count: int = 1

    def of(self, rows: Sequence[_Row]) -> Sequence[_Row]:
        """This part's rows of the step's.

        >>> [StepShard(number, 2).of("abcd") for number in range(2)]
        ['ac', 'bd']
        """
        return rows[self.number :: self.count]


WHOLE_STEP = StepShard()


def rows_per_shard(key: str, rows: int, devices: int, accumulation: int) -> int:
    """How many of a step's ``rows`` are in each part.

    Args:
        key: of the recipe, which says how many rows there are.
        rows: in a step.
        devices: that share a step.
        accumulation: parts that each of them computes.

    Raises:
        SafeError: the rows cannot be shared out evenly.

    >>> rows_of_part("batch_size", 16, devices=2, accumulation=4)
    2
    """
    parts = devices * accumulation
    if rows % parts:
        raise SafeError(
            f"`{key}` of {rows} cannot be shared out evenly among {devices} devices with "
            f"`gradient_accumulation_steps` of {accumulation}",
            hint=f"make `{key}` a multiple of {parts}",
        )
    return rows // parts


# Several processes that train one model: who comes first, who writes, and what all agree on.


_PATIENCE = timedelta(hours=6)  # the first process may work for long while the others wait
_APART = 1_000_003


@contextmanager
def distributed_context() -> Iterator[Sharding | None]:
    """Within the block, this process is one of those that a launcher started, if one did.

    Yields:
        How the base's layers are to be shared out among them; None to leave them whole.

    Raises:
        SafeError: there are more of them on this machine than it has devices.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    _check_devices(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with requested_sharding() as sharding:
        mine = not distributed.is_initialized()
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
        try:
            yield sharding
        finally:
            if mine:
                state.destroy_process_group()


def _check_devices(here: int) -> None:
    devices = torch.accelerator.device_count()
    if 0 < devices < here:
        raise SafeError(
            f"{here} processes were started on a machine with {devices} "
            f"{'device' if devices == 1 else 'devices'}",
            hint="start one process a device; or hide the devices to train on CPUs, such as by "
            "CUDA_VISIBLE_DEVICES=",
        )


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints; a process alone is."""
    return bool(PartialState().is_main_process)


def world_size() -> int:
    """How many processes train together."""
    return int(PartialState().num_processes)


def rank() -> int:
    """The place of this process among them, from 0."""
    return int(PartialState().process_index)


def device() -> torch.device:
    """Where this process computes."""
    found: torch.device = PartialState().device
    return found


def barrier() -> None:
    """Go on when every process has come here."""
    PartialState().wait_for_everyone()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let the first process do the block before any other, which will find what it left."""
    with PartialState().main_process_first():
        yield


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's tensors, in place."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def seed_processes(seed: int) -> None:
    """Let every process but the first draw other noise than it does."""
    if rank():
        torch.manual_seed(seed + _APART * rank())


def encode_shared(
    store: FrameCache | RawSampleStore,
    samples: Sequence[Sample],
    progress: Progress | None = None,
    places: Sequence[str] | None = None,
) -> Sequence[Frames | RawSample]:
    """``store.frames`` of samples that every process needs, each encoding some of them."""
    if world_size() > 1:
        mine = slice(rank(), None, world_size())
        store.frames(samples[mine], progress, places[mine] if places else None)
        barrier()
    return store.frames(samples, progress, places)
