"""The last good adapter, and what the optimizer knew when it was good."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_framework.core.adapter import adapter_tensors, copy_tensors, own_copy
from safe_framework.core.model import SafeModel

_ADAPTER, _MOMENTS = "good_adapter.safetensors", "good_optimizer.safetensors"


@attrs.frozen(eq=False)
class Snapshot:
    """Copies on the CPU.

    Attributes:
        adapter: the adapter's tensors.
        moments: what the optimizer keeps of each parameter, as ``"NUMBER.NAME"``; none before
            its first step.
    """

    adapter: dict[str, Tensor]
    moments: dict[str, Tensor]

    @classmethod
    def take(cls, model: SafeModel, optimizer: torch.optim.Optimizer) -> Snapshot:
        """Copy what training has come to."""
        held = optimizer.state_dict()["state"]
        return cls(
            {name: own_copy(tensor) for name, tensor in adapter_tensors(model).items()},
            {
                f"{number}.{name}": own_copy(tensor)
                for number, kept in held.items()
                for name, tensor in kept.items()
            },
        )

    def put_back(self, model: SafeModel, optimizer: torch.optim.Optimizer) -> None:
        """Make model and optimizer what they were; the optimizer's rates stay what they are."""
        copy_tensors(adapter_tensors(model), self.adapter, Path("the last good adapter"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.moments.items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = tensor.clone()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def keep(self, checkpoint: Path) -> None:
        """Write it into a checkpoint."""
        save_file(self.adapter, checkpoint / _ADAPTER)
        save_file(self.moments, checkpoint / _MOMENTS)

    @classmethod
    def restore(cls, checkpoint: Path) -> Snapshot:
        """Read what ``keep`` wrote."""
        return cls(load_file(checkpoint / _ADAPTER), load_file(checkpoint / _MOMENTS))
