"""Training on several devices: processes, the shards of a step, and base layers that are shared.

**Processes.** A launcher starts one process for each device; the functions here say which one this
is and let it wait for the others. Without a launcher a process is alone, and they do nothing.

**Shards of a step.** A step is computed in equal shards: by devices, and by each device one after
another (gradient accumulation). What a step is depends on the recipe alone, so a run on two
devices, or in two shards on one, comes to the weights of a run that takes each step whole, up to
rounding. Processes that average their gradients wait for each other's, and one whose shard has no
sample of a modality would have no gradients to give for it: ``touch_parameters`` gives zeros.

**FSDP2.** Each device keeps a share of the base's layers, and gathers a layer when it is called.
Only the frozen layers are sharded, by ``fully_shard`` of torch. Adapters are small: they stay
whole on every device, so optimizers, retention methods and checkpoints meet plain tensors, and
their gradients are averaged after the backward pass. Accelerate would shard them too, and does
not shard on CPUs at all; so the settings of ``accelerate launch`` are read and carried out here.
To gather a layer, every device must run the same layers, forward and backward. A device whose
batch has no sample of a modality would skip the backward pass of layers that others wait for; a
hook on the lowest layer that any modality can change lets every backward pass come down to it.
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

from safe_framework.core.layer_hooks import LayerCall, get_hidden_states, set_hidden_states
from safe_framework.core.model import SafeModel
from safe_framework.data.augmentation import Variation
from safe_framework.data.frame_cache import CachedSamples, FrameCache, RawSample, RawSampleStore
from safe_framework.errors import SafeError
from safe_framework.interfaces.samples import Sample, Several, each_of, together
from safe_framework.interfaces.types import Frames
from safe_framework.utils.progress import ProgressCallback

_Row = TypeVar("_Row")

_TIMEOUT = timedelta(hours=6)  # the main process may work for long while the others wait
_SEED_STRIDE = 1_000_003  # between the seeds of two processes
_FSDP_VARIABLE = "ACCELERATE_USE_FSDP"


@contextmanager
def distributed_context() -> Iterator[Sharding | None]:
    """Within the block, this process is in the group that a launcher started, if one did.

    Yields:
        How the base's layers are to be sharded among them; None to leave them whole.

    Raises:
        SafeError: there are more of them on this machine than it has devices.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    _check_devices(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with requested_sharding() as sharding:
        owned = not distributed.is_initialized()
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_TIMEOUT)
        try:
            yield sharding
        finally:
            if owned:
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
    """Whether this process writes and prints; a process alone does."""
    return bool(PartialState().is_main_process)


def world_size() -> int:
    """How many processes train together."""
    return int(PartialState().num_processes)


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(PartialState().process_index)


def device() -> torch.device:
    """Where this process computes."""
    found: torch.device = PartialState().device
    return found


def barrier() -> None:
    """Wait until every process has come here."""
    PartialState().wait_for_everyone()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let the main process run the block before the others, which find what it has written."""
    with PartialState().main_process_first():
        yield


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copy the main process's tensors to every process, in place."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def seed_processes(seed: int) -> None:
    """Seed each process but the main one, so that no two draw the same noise."""
    if rank():
        torch.manual_seed(seed + _SEED_STRIDE * rank())


def encode_shared(
    store: FrameCache | RawSampleStore,
    samples: Sequence[Sample],
    progress: ProgressCallback | None = None,
    places: Sequence[str] | None = None,
    variation: Variation | None = None,
) -> Sequence[Frames | RawSample]:
    """``store.frames`` of samples that every process needs; each process encodes some of them."""
    if world_size() > 1:
        own = slice(rank(), None, world_size())
        store.frames(samples[own], progress, places[own] if places else None, variation)
        barrier()
    return store.frames(samples, progress, places, variation)


def encode_rows(
    store: FrameCache | RawSampleStore,
    rows: Sequence[Sample | Several[Sample]],
    progress: ProgressCallback | None = None,
    places: Sequence[str] | None = None,
    variation: Variation | None = None,
) -> list[CachedSamples]:
    """``encode_shared`` of rows of which some have several samples, each kept by itself."""
    held = [each_of(row) for row in rows]
    samples = [one for each in held for one in each]
    named = None
    if places is not None:
        named = [
            f"{place}, sample {number}" if len(each) > 1 else place
            for place, each in zip(places, held, strict=True)
            for number in range(1, len(each) + 1)
        ]
    encoded = iter(encode_shared(store, samples, progress, named, variation))
    found = [together([next(encoded) for _ in each]) for each in held]
    return [one for one in found if one is not None]


@attrs.frozen
class StepShard:
    """One shard of a step.

    Attributes:
        number: of this shard, from 0.
        count: how many shards the step has.
    """

    number: int = 0
    count: int = 1

    def of(self, rows: Sequence[_Row]) -> Sequence[_Row]:
        """This shard's rows of the step's.

        >>> [StepShard(number, 2).of("abcd") for number in range(2)]
        ['ac', 'bd']
        """
        return rows[self.number :: self.count]


WHOLE_STEP = StepShard()


def rows_per_shard(key: str, rows: int, devices: int, accumulation: int) -> int:
    """How many of a step's ``rows`` are in each shard.

    Args:
        key: of the recipe, which says how many rows there are.
        rows: in a step.
        devices: that share a step.
        accumulation: shards that each of them computes.

    Raises:
        SafeError: the rows cannot be divided evenly.

    >>> rows_per_shard("batch_size", 16, devices=2, accumulation=4)
    2
    """
    shards = devices * accumulation
    if rows % shards:
        raise SafeError(
            f"`{key}` of {rows} cannot be shared out evenly among {devices} devices with "
            f"`gradient_accumulation_steps` of {accumulation}",
            hint=f"make `{key}` a multiple of {shards}",
        )
    return rows // shards


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
    >>> touch_parameters(torch.tensor(2.0), [parameter]).backward()
    >>> parameter.grad
    tensor([0.])
    """
    same: Tensor = _TouchParameters.apply(value, *parameters)  # type: ignore[no-untyped-call]  # torch's own
    return same


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


@attrs.frozen
class Sharding:
    """How layers are sharded.

    Attributes:
        reshard: free the other devices' shares after a layer's forward pass, and gather them
            again in the backward pass.
    """

    reshard: bool = True


@contextmanager
def requested_sharding() -> Iterator[Sharding | None]:
    """The FSDP settings of ``accelerate launch``, which Accelerate does not see in the block.

    Raises:
        SafeError: they ask for what is not supported here.
    """
    requested = os.environ.get(_FSDP_VARIABLE, "false")
    if requested.lower() not in ("true", "1"):
        yield None
        return
    if os.environ.get("FSDP_VERSION") != "2":
        raise SafeError("FSDP of version 1 is not supported", hint="set `fsdp_version: 2`")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise SafeError(
            "layers that are shared out cannot be offloaded too",
            hint="set `fsdp_offload_params: false`",
        )
    del os.environ[_FSDP_VARIABLE]
    try:
        reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
        yield Sharding(reshard)
    finally:
        os.environ[_FSDP_VARIABLE] = requested


def shard_layers(model: SafeModel, sharding: Sharding, device: torch.device) -> RemovableHandle:
    """Shard the base's layers; the weights and what they compute stay what they are.

    Args:
        model: whose base is whole on every process.
        sharding: how.
        device: this process's.

    Returns:
        The hook that lets every backward pass come down to the lowest layer that a modality can
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
    """The lowest layer whose input some modality can change; 0 where one has markers."""
    modalities = [model.modality(name) for name in model.modalities]
    if any(modality.marked for modality in modalities):
        return 0
    return min(layer for modality in modalities for layer in modality.fusion.layers)


class _RequireGradient:
    """A pre-hook that makes a layer's hidden states depend on the adapters, with zero gradient."""

    def __init__(self, model: SafeModel) -> None:
        self.parameters = list(model.trainable_parameters().values())

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall | None:
        hidden = get_hidden_states(args, kwargs)
        if not torch.is_grad_enabled() or not isinstance(hidden, Tensor) or hidden.requires_grad:
            return None
        return set_hidden_states(args, kwargs, touch_parameters(hidden, self.parameters))
