"""Short names for weights, such that other weights have another name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bits of a module's state.

    Tensors on ``meta`` (offloaded weights) count by name, type and shape alone.
    """
    return tensors_fingerprint(module.state_dict())


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over named tensors, independent of their order."""
    names = sorted(tensors)
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        digests = list(pool.map(lambda name: _digest(name, tensors[name]), names))
    return hashlib.sha256(b"".join(digests)).hexdigest()


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
