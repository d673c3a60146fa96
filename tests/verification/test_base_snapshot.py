"""The snapshot of a base recognises tensors of every kind and layout by a few of their numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from safe_framework.core.base_snapshot import BaseSnapshot

_COUNT = 210


def layouts() -> dict[str, Tensor]:
    """The same numbers, laid out in memory in several ways."""
    numbers = torch.arange(float(_COUNT))
    return {
        "flat": numbers,
        "matrix": numbers.view(10, -1),
        "every second": torch.stack([numbers, -numbers], 1)[:, 0],
        "behind others": torch.cat([-numbers, numbers])[_COUNT:],
        "transposed": numbers.view(10, -1).T.contiguous().T,
    }


def holding(tensors: dict[str, Tensor]) -> nn.ParameterDict:
    """A module of these parameters."""
    return nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in tensors.items()})


def samples(module: nn.Module) -> dict[str, bytes]:
    """By parameter, what its snapshot keeps of it."""
    return {path: mark.sample for path, mark in BaseSnapshot.of(module).tensors.items()}


def test_a_layout_in_memory_does_not_count() -> None:
    """Law: the same numbers in the same order are recognised, wherever they lie."""
    assert len(set(samples(holding(layouts())).values())) == 1


def test_what_is_read_together_is_what_is_read_alone() -> None:
    """Law: other tensors, of its type or of another, do not change what is kept of one."""
    tensors = layouts() | {
        "tiny": torch.tensor([1.0, 2.0]),
        "narrow": torch.arange(300.0, dtype=torch.bfloat16),
        "conjugate": torch.arange(300.0).to(torch.complex64).conj(),
        "none": torch.empty(0),
        "elsewhere": torch.empty(300, device="meta"),
    }
    together = samples(holding(tensors))
    assert together == {path: samples(holding({path: tensors[path]}))[path] for path in tensors}
    assert {path for path, sample in together.items() if not sample} == {"none", "elsewhere"}


@pytest.mark.parametrize("name", list(layouts()))
def test_a_write_behind_torch_is_seen(name: str) -> None:
    """Law: a change of all numbers that torch does not count is seen in those that were kept."""
    module = holding(layouts())
    before = samples(module)
    module[name].data = module[name].data + 1
    after = samples(module)
    assert {path for path in before if before[path] != after[path]} == {name}


def test_only_saved_buffers_are_recorded() -> None:
    """Law: a buffer that no checkpoint holds is derived, wherever it is; any other is recorded."""

    def owning(*children: nn.Module) -> nn.Module:
        """A module with a buffer of each sort, around others."""
        made = nn.Sequential(*children)
        made.register_buffer("kept", torch.ones(3))
        made.register_buffer("derived", torch.ones(3), persistent=False)
        return made

    recorded = BaseSnapshot.of(owning(owning(), nn.Linear(2, 2), owning(owning()))).tensors
    assert set(recorded) == {"kept", "0.kept", "1.weight", "1.bias", "2.kept", "2.0.kept"}


@pytest.mark.parametrize("index", [0, -3])
def test_both_ends_are_looked_at(index: int) -> None:
    """Law: a change of the first number, or of the third from the end, shows."""
    module = holding({"numbers": torch.arange(float(_COUNT))})
    before = BaseSnapshot.of(module).tensors["numbers"].sample
    module["numbers"].data[index] = 1e6
    assert BaseSnapshot.of(module).tensors["numbers"].sample != before
