"""L1: nothing of the base has changed since it was wrapped, nor did the calls change it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor, nn

from safe_framework.core.base_snapshot import Seal
from safe_framework.utils.tensors import integers
from safe_framework.verification.certificate import Law, judged


def digests(base: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer, also of those that are not saved.

    Offloaded ones have none: their bits are not here.
    """
    tensors = dict(base.named_parameters()) | dict(base.named_buffers())
    here = {path: tensor for path, tensor in tensors.items() if not tensor.is_meta}
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        return dict(zip(here, pool.map(_digest, here.values()), strict=True))


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(integers(tensor).cpu().numpy().data).hexdigest()


def untouched(
    base: nn.Module,
    seal: Seal,
    found: list[str],
    before: Mapping[str, str],
    identity: Mapping[str, str],
) -> Law:
    """The verdict on L1.

    Args:
        base: after the calls.
        seal: of the base.
        found: how it differs from its seal, before and after the calls.
        before: its digests before the calls.
        identity: its fingerprints after the calls.
    """
    after = digests(base)
    findings = list(dict.fromkeys(found))
    findings += [
        f"tensor `{path}` changed during the calls"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    if seal.identity is not None:
        findings += [
            f"{what} of the base are not those that the adapter was made for"
            for part, what in {"weights": "the weights", "tokenizer": "the words"}.items()
            if identity[part] and identity[part] != seal.identity[part]
        ]
    return judged("L1", "Untouched", _detail(seal, after, base), findings)


def _detail(seal: Seal, after: Mapping[str, str], base: nn.Module) -> str:
    offloaded = len(list(base.named_parameters())) + len(list(base.named_buffers())) - len(after)
    parts = [
        f"{len(after)} tensors hashed before and after",
        f"{len(seal.modules)} modules and {len(seal.settings)} settings as when it was wrapped",
    ]
    if seal.identity is not None:
        parts.append("weights as recorded with the adapter")
    if offloaded:
        parts.append(f"{offloaded} offloaded tensors by shape alone")
    return "; ".join(parts)
