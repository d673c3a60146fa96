"""Which layers of a model its tiny version keeps: one of each kind, in order."""

from __future__ import annotations

import re
from typing import Any

from tests.zoo.models.shrink_sizes import LAYERS

_COUNT = re.compile(
    r"(.*_)?(num_)?(hidden_layers|n_layers?|num_layers|layers|(encoder|decoder)_layers|depth"
    r"|num_blocks)"
)
_NO_COUNT = {"max_window_layers", "num_kv_shared_layers", "num_dense_layers"}
_MAIN = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_INDICES = re.compile(r".*(_layers|_indexes|_indices|_idxs|_layer_ids|_layer)")


def keep_some_layers(config: dict[str, Any]) -> dict[str, Any]:
    """The config with few layers: every per-layer list cut to the same chosen layers.

    Layers are of one kind if all per-layer lists agree on them, and all lists of layer numbers.
    The first layer of each kind is kept, then others up to the usual count.
    """
    counts = {name: value for name, value in config.items() if _is_count(name, value)}
    if not counts:
        return config
    total = next((counts[name] for name in _MAIN if name in counts), max(counts.values()))
    kept = _chosen(_kinds(config, total))
    cut = {name: _cut(name, value, total, kept) for name, value in config.items()}
    for name, value in counts.items():
        cut[name] = len(kept) if value == total else min(value, len(kept))
    return cut


def _is_count(name: str, value: Any) -> bool:
    is_named = bool(_COUNT.fullmatch(name)) and name not in _NO_COUNT
    return is_named and type(value) is int and value > 0


def _is_per_layer(value: Any, total: int) -> bool:
    return isinstance(value, list) and len(value) == total and total > 4


def _is_indices(name: str, value: Any, total: int) -> bool:
    if not _INDICES.fullmatch(name) or not isinstance(value, list) or not value:
        return False
    numbers = all(type(item) is int and 0 <= item < total for item in value)
    return numbers and not _is_per_layer_flag(value, total) and sorted(set(value)) == value


def _is_per_layer_flag(value: list[int], total: int) -> bool:
    return len(value) == total and set(value) <= {0, 1}


def _kinds(config: dict[str, Any], total: int) -> list[tuple[str, ...]]:
    lists = [value for value in config.values() if _is_per_layer(value, total)]
    shared = set(range(total - (config.get("num_kv_shared_layers") or 0), total))
    members = [shared] + [set(v) for name, v in config.items() if _is_indices(name, v, total)]
    lists = [value for value in lists if sorted(set(map(str, value))) != sorted(map(str, value))]
    return [
        tuple([*(str(value[n]) for value in lists), *(str(n in group) for group in members)])
        for n in range(total)
    ]


def _chosen(kinds: list[tuple[str, ...]]) -> list[int]:
    first = {kind: number for number, kind in reversed(list(enumerate(kinds)))}
    kept = set(first.values())
    spare = [number for number in range(len(kinds)) if number not in kept]
    kept |= set(spare[: max(0, LAYERS - len(kept))])
    return sorted(kept)


def _cut(name: str, value: Any, total: int, kept: list[int]) -> Any:
    if name == "num_kv_shared_layers" and value:
        return sum(number >= total - value for number in kept)
    if name == "per_layer_config" and isinstance(value, dict):
        return {str(new): value[key] for new, old in enumerate(kept)
                for key in value if int(key) == old}  # fmt: skip
    if _is_indices(name, value, total):
        return [new for new, old in enumerate(kept) if old in value]
    if _is_per_layer(value, total):
        return [value[number] for number in kept]
    return value
