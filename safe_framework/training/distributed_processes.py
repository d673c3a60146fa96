"""Several processes that train one model: who comes first, who writes, and what all agree on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import Tensor, distributed

from safe_framework.data.frame_cache import FrameStore, Progress
from safe_framework.data.frame_cache_unencoded import Unencoded, UnencodedSamples
from safe_framework.errors import SafeError
from safe_framework.interfaces.types import Frames, Sample
from safe_framework.training.distributed import Sharding, sharding_wanted

_PATIENCE = timedelta(hours=6)  # the first process may work for long while the others wait
_APART = 1_000_003


@contextmanager
def joined() -> Iterator[Sharding | None]:
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
    with sharding_wanted() as sharding:
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


def is_first() -> bool:
    """Whether this process is the one that writes and prints; a process alone is."""
    return bool(PartialState().is_main_process)


def count() -> int:
    """How many processes train together."""
    return int(PartialState().num_processes)


def rank() -> int:
    """The place of this process among them, from 0."""
    return int(PartialState().process_index)


def device() -> torch.device:
    """Where this process computes."""
    found: torch.device = PartialState().device
    return found


def wait() -> None:
    """Go on when every process has come here."""
    PartialState().wait_for_everyone()


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process do the block before any other, which will find what it left."""
    with PartialState().main_process_first():
        yield


def agree(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's tensors, in place."""
    if count() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def seed_apart(seed: int) -> None:
    """Let every process but the first draw other noise than it does."""
    if rank():
        torch.manual_seed(seed + _APART * rank())


def shared_frames(
    store: FrameStore | UnencodedSamples,
    samples: Sequence[Sample],
    progress: Progress | None = None,
    places: Sequence[str] | None = None,
) -> Sequence[Frames | Unencoded]:
    """``store.frames`` of samples that every process needs, each encoding some of them."""
    if count() > 1:
        mine = slice(rank(), None, count())
        store.frames(samples[mine], progress, places[mine] if places else None)
        wait()
    return store.frames(samples, progress, places)
