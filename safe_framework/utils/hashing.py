"""Short names for weights, such that other weights have another name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bits of a module's state.

    Of weights that devices share, each is gathered in turn: all of them must call this together.
    Weights that accelerate has offloaded count as they are where it keeps them, read one by one;
    any other tensor on ``meta`` counts by name, type and shape alone.
    """
    tensors = module.state_dict()

    def read(name: str) -> Tensor:
        """A tensor's values, from where accelerate keeps them if need be."""
        kept = _offloaded(module, name) if tensors[name].is_meta else None
        return tensors[name] if kept is None else kept

    # A DTensor, known by its method since its module takes long to import.
    shared = any(hasattr(tensor, "full_tensor") for tensor in tensors.values())
    return _fingerprint(tensors, read, _in_turn if shared else _at_once)


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over named tensors, independent of their order."""
    return _fingerprint(tensors, tensors.__getitem__, _at_once)


def content_fingerprints(
    module: nn.Module,
    dtypes: Iterable[torch.dtype],
    cut: Callable[[str, Tensor], Tensor] | None = None,
) -> dict[torch.dtype, str]:
    """SHA-256 over the numbers of a module's weights in each of some types, whatever their names.

    Weights that modules share count once. Numbers that are not floating stay as they are.

    Args:
        module: whose weights.
        dtypes: to which floating numbers are rounded.
        cut: gives what is to be looked at of a tensor, by its name; all of it by default.
    """
    tensors, types = module.state_dict(), list(dtypes)
    seen: set[tuple[int, tuple[int, ...]]] = set()
    names = []
    for name, tensor in tensors.items():
        key = (0 if tensor.is_meta else tensor.data_ptr(), tuple(tensor.shape))
        if not key[0] or key not in seen:
            names.append(name)
        seen.add(key)

    def digests(name: str) -> list[bytes]:
        """One digest for each type."""
        kept = _offloaded(module, name) if tensors[name].is_meta else None
        whole = tensors[name] if kept is None else kept
        if hasattr(whole, "full_tensor"):
            whole = whole.full_tensor()
        return content_digests(whole if cut is None else cut(name, whole), types)

    found = [digests(name) for name in names]  # torch's casts fail in a thread of a forked process
    return joined_contents(types, found)


def content_digests(tensor: Tensor, dtypes: Sequence[torch.dtype]) -> list[bytes]:
    """What a tensor gives to ``content_fingerprints`` in each of some types."""
    plain = _is_plain_float(tensor)
    return [tensor_digest("", tensor.to(dtype) if plain else tensor) for dtype in dtypes]


def joined_contents(
    dtypes: Sequence[torch.dtype], digests: Sequence[Sequence[bytes]]
) -> dict[torch.dtype, str]:
    """``content_fingerprints`` of what ``content_digests`` gave of each tensor."""
    return {
        dtype: hashlib.sha256(b"".join(sorted(one[at] for one in digests))).hexdigest()
        for at, dtype in enumerate(dtypes)
    }


def joined_digests(digests: Mapping[str, bytes]) -> str:
    """``fingerprint`` of what ``tensor_digest`` gave of each tensor, by its name."""
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()


def layout_fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names and shapes of a module's state."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return text_fingerprint(sorted(shapes.items()))


Digests = Callable[[Callable[[str], bytes], Iterable[str]], Iterable[bytes]]


def _fingerprint(names: Iterable[str], read: Callable[[str], Tensor], each: Digests) -> str:
    digests = each(lambda name: tensor_digest(name, read(name)), sorted(names))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _at_once(digest: Callable[[str], bytes], names: Iterable[str]) -> list[bytes]:
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        return list(pool.map(digest, names))


def _in_turn(digest: Callable[[str], bytes], names: Iterable[str]) -> list[bytes]:
    """One after another, since devices must gather what they share in the same order."""
    return [digest(name) for name in names]


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


def vocabulary_fingerprints(tokenizer: Any) -> dict[str, str]:
    """SHA-256 over a tokenizer's vocabulary and special tokens, whatever it pads with.

    Returns:
        ``words``, and ``words_without_pad`` without the entry of the pad token where no other
        special token is the same; nothing if there is no tokenizer.
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if inner is None:
        return {}
    special = {key: value for key, value in inner.special_tokens_map.items() if key != "pad_token"}
    words = inner.get_vocab()
    pad = str(inner.special_tokens_map.get("pad_token", ""))
    alone = pad not in map(str, special.values())
    fewer = {word: number for word, number in words.items() if not (alone and word == pad)}
    return {
        "words": text_fingerprint(sorted(words.items()), special),
        "words_without_pad": text_fingerprint(sorted(fewer.items()), special),
    }


def _is_plain_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not hasattr(tensor, "__tensor_flatten__")


def tensor_digest(name: str, tensor: Tensor) -> bytes:
    """What a named tensor gives to ``fingerprint``."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    digest = hashlib.sha256(f"{name}|{whole.dtype}|{tuple(whole.shape)}|".encode())
    if hasattr(whole, "__tensor_flatten__"):  # of several, as quantised ones are
        for part in sorted(whole.__tensor_flatten__()[0]):
            digest.update(tensor_digest(part, getattr(whole, part)))
        return digest.digest()
    if not whole.is_meta and whole.numel():
        flat = whole.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()
