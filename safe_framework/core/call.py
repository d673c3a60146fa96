"""Rows that hear nothing, run apart from those that do.

A mixture-of-experts base computes the tokens of a whole batch together by expert, so what one row
hears can move the last bits of another. There the call is made twice, without and with the
modalities, and each row is taken from the run that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from safe_framework.errors import SafeError

_UNMERGED = ("past_key_values", "loss")


def call_apart(
    silent: Callable[[], Any], heard: Callable[[], Any], rows: Tensor, batch: int, fill: int
) -> Any:
    """Both calls from the same random state, and each row from the one that it belongs to.

    Args:
        silent: the call without any modality; its results stand for every row not in ``rows``.
        heard: the call with the modalities.
        rows: that carry a modality, ascending, (heard,).
        batch: how many rows a call has.
        fill: token id after the end of a shorter generated text.

    Returns:
        What the base returns, but for a cache, and for whatever has no row for each sample.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        without = silent()
    return _merge(without, heard(), rows, batch, fill)


def refuse_shared(inputs: Mapping[str, Any]) -> None:
    """Refuse a call that cannot be made twice.

    Raises:
        SafeError: it continues a cache, or asks for one loss over all rows.
    """
    for name in ("past_key_values", "labels", "streamer"):
        if inputs.get(name) is not None:
            raise SafeError(
                f"`split_rows` cannot take `{name}` in a batch of which only some rows carry a "
                "modality",
                hint="give those rows a call of their own",
            )


def _merge(without: Any, heard: Any, rows: Tensor, batch: int, fill: int) -> Any:
    def merged(first: Any, second: Any) -> Any:
        """The same for a part of both outputs."""
        return _merge(first, second, rows, batch, fill)

    if isinstance(without, Tensor):
        return _merged_tensor(without, heard, rows, batch, fill)
    if isinstance(without, Mapping):  # a ModelOutput
        kept = {
            key: merged(value, heard[key]) for key, value in without.items() if key not in _UNMERGED
        }
        return type(without)(**kept)
    if isinstance(without, (tuple, list)):
        return type(without)(map(merged, without, heard))
    return None


def _merged_tensor(
    without: Tensor, heard: Tensor, rows: Tensor, batch: int, fill: int
) -> Tensor | None:
    if not without.ndim or without.shape[0] % batch:
        return None
    copies = without.shape[0] // batch
    copy = torch.arange(copies, device=rows.device).repeat(len(rows))
    places = (rows.repeat_interleave(copies) * copies + copy).to(without.device)
    if without.shape != heard.shape:  # texts of different lengths
        without, heard = _as_long(without, heard, fill), _as_long(heard, without, fill)
    return without.index_copy(0, places, heard[places])


def _as_long(texts: Tensor, others: Tensor, fill: int) -> Tensor:
    missing = max(others.shape[1] - texts.shape[1], 0)
    return torch.nn.functional.pad(texts, (0, missing), value=fill)


def union(rows: Sequence[Tensor]) -> Tensor:
    """The numbers that are in any of ``rows``, which are ascending: each once and in order."""
    if len(rows) == 1:
        return rows[0]
    found: Tensor = torch.unique(torch.cat(list(rows)))
    return found
