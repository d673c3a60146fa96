"""What processes that train together do alike, apart, and one after another."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from safe_framework.core.model import SafeModel
from safe_framework.data.frame_cache import FrameCache
from safe_framework.errors import SafeError
from safe_framework.interfaces.samples import Sample
from safe_framework.training import distributed
from safe_framework.training.callbacks import ProgressReport
from safe_framework.training.distributed import Sharding, lowest_fused_layer, shard_layers
from safe_framework.utils.progress import WorkProgress
from safe_framework_plugins.projectors.standard import StandardProjector
from tests.support.toys import DIM, HIDDEN, LAYERS, ToyEncoder, lora


def test_a_process_alone_is_the_first() -> None:
    """Law: without a launcher nothing is shared, nobody waits, and the one process writes."""
    with distributed.distributed_context() as sharding:
        assert sharding is None
        assert (
            distributed.is_main_process(),
            distributed.world_size(),
            distributed.rank(),
        ) == (True, 1, 0)
        distributed.barrier()


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: where there are devices, each process of a machine needs one; CPUs they may share."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    words = "2 processes were started on a machine with 1 device\nhint: start one process a device"
    with pytest.raises(SafeError, match=words), distributed.distributed_context():
        pass


def test_a_process_alone_keeps_its_noise() -> None:
    """Law: the first process's random numbers are those of a run by itself."""
    before = torch.random.get_rng_state()
    distributed.seed_processes(3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_others_draw_other_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: no two processes draw the same numbers."""
    drawn = []
    for rank in (1, 2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        with torch.random.fork_rng():
            distributed.seed_processes(3)
            drawn.append(torch.rand(4))
    assert not torch.equal(*drawn)


def test_each_process_encodes_a_share(
    model: SafeModel, samples: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: before all meet, a process encodes its own samples alone; afterwards it has them all."""
    store, asked = model.modality("touch").frame_cache(tmp_path), []
    encode = FrameCache.frames

    def frames(self: FrameCache, some: Sequence[Sample], *rest: Any) -> Any:
        asked.append(len(some))
        return encode(self, some, *rest)

    monkeypatch.setattr(FrameCache, "frames", frames)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "barrier", lambda: asked.append(0))
    assert len(distributed.encode_shared(store, samples)) == len(samples) == 6
    assert asked == [2, 0, 6]  # samples 1 and 5, then the others' too


@pytest.mark.parametrize("first", [True, False])
def test_the_first_process_alone_tells_hooks(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a logged row reaches the installed hooks once, whatever the number of processes."""
    report, reported = ProgressReport(WorkProgress(Console(quiet=True))), []
    hook = SimpleNamespace(safe_training_step=lambda **metrics: reported.append(metrics))
    monkeypatch.setattr(report, "hooks", SimpleNamespace(hook=hook))
    state = SimpleNamespace(is_world_process_zero=first, global_step=3)
    report.on_log(None, state, None, logs={"loss": 1.0})
    assert len(reported) == first


def test_a_base_that_is_called_once_or_twice_is_not_shared_out(model: SafeModel) -> None:
    """Law: with `split_rows`, devices would wait for each other forever: refused."""
    model.split_rows = True
    with pytest.raises(SafeError, match=r"^`split_rows` .*\nhint: launch without FSDP$"):
        shard_layers(model, Sharding(), torch.device("cpu"))


def test_layers_that_train_are_not_shared_out(model: SafeModel) -> None:
    """Law: what trains stays whole on every device: refused."""
    model.base.model.layers[0].requires_grad_(True)
    with pytest.raises(SafeError, match=r"^layers that train cannot be shared out"):
        shard_layers(model, Sharding(), torch.device("cpu"))


def test_backward_passes_come_down_to_what_a_modality_can_change(model: SafeModel) -> None:
    """Law: it is the lowest fused layer of any modality, and the first where one has markers."""
    model.remove_modality("touch")
    found = []
    for name, layer, markers in (("high", -1, False), ("low", 1, False), ("marked", -1, True)):
        model.add_modality(
            name,
            encoder=ToyEncoder(),
            projector=StandardProjector(DIM, HIDDEN, tokens=2, hidden_dim=8),
            fusion=lora(model, layers=[layer]),
            markers=markers,
        )
        found.append(lowest_fused_layer(model))
    assert found == [LAYERS - 1, 1, 0]
