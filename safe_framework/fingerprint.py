"""Short names for weights, such that other weights have another name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bits of a module's state.

    Weights that accelerate has offloaded count as they are where it keeps them, read one by one;
    any other tensor on ``meta`` counts by name, type and shape alone.
    """
    tensors = module.state_dict()

    def read(name: str) -> Tensor:
        kept = _offloaded(module, name) if tensors[name].is_meta else None
        return tensors[name] if kept is None else kept

    return _fingerprint(tensors, read)


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over named tensors, independent of their order."""
    return _fingerprint(tensors, tensors.__getitem__)


def _fingerprint(names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        digests = list(pool.map(lambda name: _digest(name, read(name)), sorted(names)))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _offloaded(module: nn.Module, name: str) -> Tensor | None:
    """The tensor that accelerate's hooks load for ``name``; None if none of them does."""
    parts = name.split(".")
    for depth in range(len(parts)):
        hook = getattr(module.get_submodule(".".join(parts[:depth])), "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):  # a sequence of hooks, or one
            weights = getattr(one, "weights_map", None) or {}
            if (local := ".".join(parts[depth:])) in weights:
                found: Tensor = weights[local]
                return found
    return None


def text_fingerprint(*parts: Any) -> str:
    """SHA-256 over values that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over a tokenizer's vocabulary and special tokens; empty if there is none."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if inner is None:
        return ""
    return text_fingerprint(sorted(inner.get_vocab().items()), inner.special_tokens_map)


def _digest(name: str, tensor: Tensor) -> bytes:
    digest = hashlib.sha256(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
    if not tensor.is_meta and tensor.numel():
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()
