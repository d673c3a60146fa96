"""What retention methods are given before the first step: texts one by one, and a file to keep."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import safe_framework
from safe_framework.core.adapter import adapter_tensors
from safe_framework.data.frame_cache_unencoded import contents
from safe_framework.interfaces.retention_retention_store import Progress, RetentionStore
from safe_framework.training.batches import carry
from safe_framework.utils.hashing import fingerprint, tensors_fingerprint, text_fingerprint
from safe_framework.utils.sequences import MadeWhenRead

if TYPE_CHECKING:
    from safe_framework.training.retention.counterfactual import CounterfactualRetention, Weighted


class RetentionExamples(MadeWhenRead[Mapping[str, Tensor]]):
    """Each retention text alone, beside an irrelevant sample; made when it is read.

    Text ``i`` gets the kind ``kinds[i % len(kinds)]``, and each kind's samples come in turn.

    Args:
        retention: has the texts and the samples.
        kinds: of irrelevant sample; without any there are no examples.
    """

    def __init__(self, retention: CounterfactualRetention, kinds: Sequence[str]) -> None:
        self.retention, self.kinds = retention, tuple(kinds)

    def __len__(self) -> int:
        return len(self.retention.marked) if self.kinds else 0

    def made(self, number: int) -> Mapping[str, Tensor]:
        """A text and its irrelevant sample, as a batch of one row."""
        round_, turn = divmod(number, len(self.kinds))
        ids = torch.tensor([list(self.retention.marked[number])])  # (1, length)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for name, pools in self.retention.pools.items():
            pool = pools[self.kinds[turn]]
            batch |= carry(name, [pool[round_ % len(pool)]], self.retention.dims[name])
        device = self.retention.model.device
        return {key: value.to(device) for key, value in batch.items()}


def store_of(
    path: Path,
    retention: CounterfactualRetention,
    entry: Weighted,
    *,
    resumed: bool,
    progress: Progress,
) -> RetentionStore:
    """Where a method keeps what it computes, bound to all that it computes it from.

    Args:
        path: of the file.
        retention: has the model, the texts and the samples.
        entry: the method and its options.
        resumed: whether training goes on from a later step, so that its start is not here.
        progress: the bar.
    """

    def made_for() -> dict[str, str]:
        """What the kept files depend on."""
        return {
            "base": fingerprint(retention.model.base),
            "retention data": _data(retention),
            "version of the code": _code(entry),
            "retention method": text_fingerprint(type(entry.method).__qualname__, entry.options),
        }

    start = None if resumed else tensors_fingerprint(adapter_tensors(retention.model))
    return RetentionStore(path, made_for, start=start, progress=progress)


def _data(retention: CounterfactualRetention) -> str:
    pooled = {
        f"{name}.{kind}.{number}": one
        for name, pools in retention.pools.items()
        for kind, pool in pools.items()
        for number, one in enumerate(pool)
    }
    rows = [list(map(int, row)) for row in retention.marked]
    frames, samples = contents(pooled)
    if not samples:
        return text_fingerprint(rows, tensors_fingerprint(frames))
    return text_fingerprint(rows, tensors_fingerprint(frames), samples)


def _code(entry: Weighted) -> str:
    """The framework's version, and the source of the method's module."""
    source = inspect.getsourcefile(type(entry.method))
    content = Path(source).read_bytes() if source else b""
    return text_fingerprint(safe_framework.__version__, hashlib.sha256(content).hexdigest())
