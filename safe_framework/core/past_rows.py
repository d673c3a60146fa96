"""Keys and values of single rows, taken out of a base's cache, and put together into another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from safe_framework.errors import UnsupportedBaseError

KEY, VALUE = "key.", "value."

Past = Mapping[str, Tensor]
"""Keys and values by kind and layer, (length, heads, width of a head) each."""


def past_of_rows(cache: Any) -> dict[str, Tensor]:
    """Keys and values of a cache by kind and layer, (batch, length, heads, width of a head).

    Raises:
        UnsupportedBaseError: it keeps something else.
    """
    found: dict[str, Any] = {
        f"{kind}{number}": getattr(layer, name, None)
        for number, layer in enumerate(getattr(cache, "layers", ()))
        for kind, name in ((KEY, "keys"), (VALUE, "values"))
    }
    if not found or not all(isinstance(v, Tensor) and v.ndim == 4 for v in found.values()):
        kind = type(cache).__name__
        raise UnsupportedBaseError(f"a `{kind}` holds no keys of each position at each layer")
    return {name: values.transpose(1, 2).contiguous() for name, values in found.items()}


def cache_of(
    rows: Sequence[Sequence[Past]], device: torch.device, columns: int | None = None
) -> Any:
    """A cache of rows, padded on the left, for a call that goes on behind them.

    Args:
        rows: each in parts, one after another; all of the same layers.
        device: where the cache is to be.
        columns: that it has; those of the longest row if None.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    lengths = [sum(len(next(iter(part.values()))) for part in parts) for parts in rows]
    longest = max(lengths) if columns is None else columns
    layers = dict[int, tuple[Tensor, Tensor]]()
    for name in rows[0][0]:
        if name.startswith(KEY):
            number = int(name.removeprefix(KEY))
            keys, values = (
                _padded_left([[part[f"{kind}{number}"] for part in row] for row in rows], longest)
                for kind in (KEY, VALUE)
            )
            layers[number] = _in_autocast(keys.to(device)), _in_autocast(values.to(device))
    lowest = min(layers)
    unread = layers[lowest][0].new_zeros(1).expand_as(layers[lowest][0])  # below, nothing runs
    cache = DynamicCache()
    for number in range(max(layers) + 1):
        keys, values = layers.get(number, (unread, unread))
        layer: Any = DynamicLayer()  # type: ignore[no-untyped-call]  # transformers' own is untyped
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def behind_pasts(pasts: Sequence[Sequence[Past]], ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """The inputs of a call on texts, each of which goes on behind keys and values of its own.

    Args:
        pasts: of each text, in parts, one after another; all of the same layers.
        ids: of the texts, padded on the right, (batch, width).
        mask: which of them are real, (batch, width).
    """
    lengths = torch.tensor([sum(len(next(iter(part.values()))) for part in own) for own in pasts])
    longest = int(lengths.max())
    known = torch.arange(longest) >= longest - lengths[:, None]  # (batch, longest)
    positions = lengths[:, None] + torch.arange(ids.shape[1])  # (batch, width)
    return {
        "input_ids": ids,
        "past_key_values": cache_of(pasts, ids.device),
        "attention_mask": torch.cat([known.to(mask), mask], dim=1),
        "position_ids": positions.to(ids.device),
    }


def _padded_left(rows: Sequence[Sequence[Tensor]], longest: int) -> Tensor:
    """Rows in parts of (length, heads, width) each, as (batch, heads, longest, width)."""
    first = rows[0][0]
    found = first.new_zeros(len(rows), longest, *first.shape[1:])
    for row, parts in zip(found, rows, strict=True):
        end = longest
        for part in reversed(parts):
            row[end - len(part) : end] = part
            end -= len(part)
    return found.transpose(1, 2)


def _in_autocast(values: Tensor) -> Tensor:
    """In the type that a layer computes in now, beside whose own keys they will stand."""
    kind = values.device.type
    return values.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else values
