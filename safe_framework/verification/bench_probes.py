"""Temporary hooks on the parts of modalities: to make them loud, to watch and to count them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel


@contextmanager
def loud(model: SafeModel) -> Iterator[None]:
    """Let every fusion adapter answer with noise as large as the hidden states it is shown."""
    fusions = [model.modality(name).fusion for name in model.modalities]
    handles = [fusion.register_forward_hook(_noise) for fusion in fusions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noise(module: nn.Module, args: Any, delta: Any) -> Any:
    hidden: Tensor = args[0]
    generator = torch.Generator().manual_seed(hidden.shape[-2])
    noise = torch.randn(hidden.shape, generator=generator).to(hidden.device)
    scale = hidden.detach().float().abs().mean() + 1e-3
    return (scale * noise).to(hidden.dtype)


@contextmanager
def moved(model: SafeModel) -> Iterator[set[str]]:
    """Collects the names of the modalities whose delta was not zero everywhere."""
    found: set[str] = set()
    handles = []
    for name in model.modalities:

        def look(module: nn.Module, args: Any, delta: Tensor, name: str = name) -> None:
            """Note the modality if its delta is not zero."""
            if bool((delta != 0).any()):
                found.add(name)

        handles.append(model.modality(name).fusion.register_forward_hook(look))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def counted(model: SafeModel) -> Iterator[Counter[str]]:
    """Counts the calls of every module of every modality, by its path."""
    calls: Counter[str] = Counter()
    handles = []
    for path, module in model.modalities.named_modules():

        def count(module: nn.Module, args: Any, path: str = path) -> None:
            """Count a call of the module."""
            calls[path] += 1

        handles.append(module.register_forward_pre_hook(count))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
