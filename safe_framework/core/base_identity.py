"""What tells one base from another, and which differences change nothing that an adapter relies on.

A base is recognised by exact fingerprints. Where they differ, looser ones tell a harmless reason
from a harmful one: the same weights in another dtype, under other module names, or below rows that
were appended to the vocabulary; the same words with another pad token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.base_snapshot import BaseSnapshot
from safe_framework.core.layer_discovery import text_config
from safe_framework.pretrained.base_processor import image_settings
from safe_framework.pretrained.probe_cache import cached
from safe_framework.utils.hashing import (
    content_fingerprints,
    fingerprint,
    layout_fingerprint,
    text_fingerprint,
    tokenizer_fingerprint,
    vocabulary_fingerprints,
)

EXACT = ("class", "weights", "config", "tokenizer", "image_processor")
"""The parts of a base that must be the adapter's own, unless a looser fingerprint excuses them."""

# What changes a base's outputs where its weights stay the same.
_READS_WEIGHTS = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "sliding_window",
)
_LOADED_IN = (torch.float32, torch.bfloat16, torch.float16)
"""Types in which models are commonly loaded."""


def base_identity(
    base: nn.Module, processor: Any, snapshot: BaseSnapshot, name: str = ""
) -> dict[str, str]:
    """What tells one base from another: class, weights, config, tokenizer and image processor.

    Args:
        base: with the weights that it had before any change.
        processor: its own, or its tokenizer.
        snapshot: of the base, by which its fingerprint is found again.
        name: of the checkpoint, for people.
    """
    config = text_config(base)
    facts = {name: getattr(config, name, None) for name in _READS_WEIGHTS}
    weights = cached(base, f"weights {snapshot.digest}", lambda: fingerprint(base))
    words = cached(base, "tokenizer", lambda: tokenizer_fingerprint(processor))
    images = image_settings(processor)
    return {
        "class": type(base).__name__,
        "model": name,
        "weights": weights,
        "config": text_fingerprint(facts),
        "tokenizer": words,
        **({"image_processor": text_fingerprint(images)} if images else {}),
    }


_KNOWN: dict[str, dict[str, str]] = {}
"""Looser fingerprints of weights by their exact one, from which they follow."""


def recorded_weights(module: nn.Module, exact: str) -> dict[str, str]:
    """The looser fingerprints of a module's weights, for what is saved.

    Args:
        module: whose weights.
        exact: what ``fingerprint`` gives of them.

    Returns:
        ``dtype`` (the types of its weights, the commonest first), ``layout`` (their names and
        shapes), and ``contents_DTYPE``: their numbers in that type and in those no wider.
    """
    if exact not in _KNOWN:
        main = _main_dtype(module)
        types = {main, *(one for one in _LOADED_IN if one.itemsize <= main.itemsize)}
        contents = content_fingerprints(module, sorted(types, key=str))
        _KNOWN[exact] = {
            "dtype": _dtypes(module),
            "layout": layout_fingerprint(module),
            **{f"contents_{_name(dtype)}": found for dtype, found in contents.items()},
        }
    return _KNOWN[exact]


def recorded_base(base: nn.Module, processor: Any, identity: Mapping[str, str]) -> dict[str, str]:
    """What an adapter records of its base: exact fingerprints, and the looser ones.

    Args:
        base: with the weights that it had before any change.
        processor: its own, or its tokenizer.
        identity: what ``base_identity`` gave.
    """
    return {
        **identity,
        **recorded_weights(base, identity["weights"]),
        "vocabulary": str(_vocabulary(base)),
        **vocabulary_fingerprints(processor),
    }


@attrs.frozen
class BaseComparison:
    """How a base differs from the one that an adapter was made for.

    Attributes:
        harmless: each difference that changes nothing that the adapter relies on.
        harmful: the parts that differ otherwise.
    """

    harmless: tuple[str, ...]
    harmful: tuple[str, ...]


Contents = Callable[
    [nn.Module, Sequence[torch.dtype], Callable[[str, Tensor], Tensor] | None],
    Mapping[torch.dtype, str],
]
"""What gives the fingerprints of a module's numbers, as ``content_fingerprints`` does."""


def compare_bases(
    recorded: Mapping[str, str],
    base: nn.Module,
    processor: Any,
    now: Mapping[str, str],
    contents: Contents = content_fingerprints,
) -> BaseComparison:
    """How ``base`` differs from the one that an adapter recorded.

    Args:
        recorded: what ``recorded_base`` gave of the adapter's base; an older adapter has exact
            fingerprints alone.
        base: that the adapter is to be loaded on.
        processor: its own, or its tokenizer.
        now: its ``base_identity``; a part that it leaves out is not compared.
        contents: of its weights.
    """
    harmless: list[str] = []
    harmful: list[str] = []
    for part in EXACT:
        if not now.get(part) or now[part] == recorded.get(part, now[part]):
            continue
        excused: Sequence[str] | None = None
        if part == "weights":
            excused = same_weights(recorded, base, contents)
        elif part == "tokenizer":
            excused = _same_words(recorded, processor)
        if excused is None:
            harmful.append(part + _types(part, recorded, base))
        else:
            harmless += excused
    return BaseComparison(tuple(harmless), tuple(harmful))


def same_weights(
    recorded: Mapping[str, str], module: nn.Module, contents: Contents = content_fingerprints
) -> list[str] | None:
    """How weights of equal numbers differ all the same; None where the numbers differ.

    They are compared in both main types: the wider one's were rounded to the narrower one's.

    Args:
        recorded: what ``recorded_weights`` gave of the others.
        module: whose weights.
        contents: of its weights.
    """
    types = compared_types(recorded, module)
    if not types:
        return None
    here, then = _dtypes(module), recorded["dtype"]
    cut = rows_kept(recorded, module)
    found = contents(module, types, cut)
    if not any(recorded[f"contents_{_name(dtype)}"] == digest for dtype, digest in found.items()):
        return None
    notes = [f"its weights are {here} and were {then}"] if here != then else []
    if cut is not None:
        now, before = _vocabulary(module), recorded["vocabulary"]
        notes.append(f"its vocabulary has {now} rows and had {before}")
    elif not _same_layout(recorded, module):
        notes.append("its modules have other names")
    return notes


def compared_types(recorded: Mapping[str, str], module: nn.Module) -> list[torch.dtype]:
    """The types in which numbers are compared; none where the exact fingerprint says it all.

    Args:
        recorded: what ``recorded_weights`` gave of other weights.
        module: whose weights are compared with them.
    """
    here, then = _dtypes(module), recorded.get("dtype", "")
    if not then or (here == then and _same_layout(recorded, module)):
        return []
    names = dict.fromkeys((_name(_main_dtype(module)), then.partition(",")[0]))
    return [getattr(torch, name) for name in names if recorded.get(f"contents_{name}")]


def _same_layout(recorded: Mapping[str, str], module: nn.Module) -> bool:
    return recorded.get("layout") == layout_fingerprint(module)


def _same_words(recorded: Mapping[str, str], processor: Any) -> list[str] | None:
    """How a tokenizer of the same words differs; None where the words differ."""
    here = vocabulary_fingerprints(processor)
    known = {recorded[key] for key in here if key in recorded}
    return ["its tokenizer has another pad token"] if known & {*here.values()} else None


def _types(part: str, recorded: Mapping[str, str], base: nn.Module) -> str:
    """For a message: the types of weights, where they differ."""
    here, then = _dtypes(base), recorded.get("dtype", "")
    return f" ({here} here, {then} there)" if part == "weights" and then not in ("", here) else ""


def rows_kept(
    recorded: Mapping[str, str], base: nn.Module
) -> Callable[[str, Tensor], Tensor] | None:
    """What leaves rows out that were appended to the vocabulary; None where none were."""
    had, have = int(recorded.get("vocabulary", 0)), _vocabulary(base)
    if not 0 < had < have:
        return None
    tables = [base.get_input_embeddings(), base.get_output_embeddings()]  # type: ignore[operator]
    grown = {
        f"{path}.{name}"
        for path, module in base.named_modules(remove_duplicate=False)
        if any(module is table for table in tables)
        for name in ("weight", "bias")
    }
    return lambda name, tensor: tensor[:had] if name in grown else tensor


def _vocabulary(base: nn.Module) -> int:
    """The rows of the input embeddings; 0 where there are none."""
    try:
        weight = base.get_input_embeddings().weight  # type: ignore[operator]  # nn.Module
    except (AttributeError, NotImplementedError):
        return 0
    return int(weight.shape[0])


def _floating(module: nn.Module) -> dict[torch.dtype, int]:
    """How many numbers of each floating type its parameters hold."""
    found: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            found[parameter.dtype] = found.get(parameter.dtype, 0) + parameter.numel()
    return found


def _main_dtype(module: nn.Module) -> torch.dtype:
    first = _dtypes(module).partition(",")[0]
    found: torch.dtype = getattr(torch, first or "float32")
    return found


def _dtypes(module: nn.Module) -> str:
    """The floating types of its parameters, the commonest first."""
    found = _floating(module)
    return ", ".join(map(_name, sorted(found, key=lambda dtype: (-found[dtype], str(dtype)))))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
