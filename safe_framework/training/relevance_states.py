"""What relevance heads read of calls: the base's own states at their ends, kept on disk.

Calls in one prompt, or in one chat, begin alike. What many begin with is read once, and each call
behind it, where the base gives the same but for rounding: it is longer than most questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from safe_framework.core.base_errors import base_errors
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import layer_outputs
from safe_framework.core.prompt_rows import PromptRow, Rows
from safe_framework.core.shared_opening import SharedOpening, behind, openings, reads_trees
from safe_framework.core.text_trees import in_calls
from safe_framework.errors import InjectionError, UnsupportedBaseError
from safe_framework.training.compute.activation_cache import (
    ActivationCaches,
    Activations,
    ActivationStore,
)
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.tensors import near

_MANY = 64  # rows that share an opening: trees share what fewer have in common


def prompt_states(
    model: SafeModel,
    rows: Sequence[PromptRow],
    layers: Sequence[int],
    *,
    label: str = "states of the relevance gate",
    progress: ProgressCallback = no_progress,
) -> dict[int, Tensor]:
    """The base's own states at the end of each row, by layer, (rows, hidden), from the cache.

    Args:
        model: in any mode; the base is always in that of evaluation.
        rows: without samples.
        layers: whose outputs are read, from 0.
        label: what ``progress`` shows.
        progress: called after every few rows.
    """
    reader = EndReader(model, layers)
    parts = openings(model, rows, _MANY) if reader.in_trees else openings(model, rows)
    if not reader.goes_on(parts):
        parts = {(): list(dict.fromkeys(rows))}
    found, count = dict[PromptRow, Activations](), sum(map(len, parts.values()))
    for opening, own in parts.items():
        store = reader.store(opening, own)
        store.precompute(own, label, partial(_of_all, progress, len(found), len(own), count))
        found |= dict(zip(own, store.of(own), strict=True))
    return {layer: torch.cat([found[row][str(layer)] for row in rows]) for layer in layers}


def _of_all(
    progress: ProgressCallback, before: int, own: int, count: int, label: str, groups: int, of: int
) -> None:
    """Say how many of all rows are done, where a part says how many of its groups are."""
    progress(label, before + own * groups // of, count)


class EndReader:
    """Reads the ends of rows, behind what they begin with.

    Args:
        model: whose base reads them.
        layers: whose outputs are kept.
    """

    def __init__(self, model: SafeModel, layers: Sequence[int]) -> None:
        self.model, self.layers = model, tuple(layers)
        self._caches = ActivationCaches(model, (), {}, model.processor.padding)
        self.in_trees = reads_trees(model, self._caches.prompts, self._caches.pad)

    def store(self, opening: Sequence[int], rows: Rows) -> ActivationStore:
        """The states of rows that begin so."""
        shared, name = self.opened(opening, rows), f"prompt ends {list(self.layers)}"
        found = self._caches.store_of(
            rows, partial(self.read, shared), len(self.layers),
            f"{name} behind {list(opening)}{' in trees' if shared.in_trees else ''}",
            groups=partial(in_calls, begin=len(opening)) if shared.in_trees else None,
        )  # fmt: skip
        assert found is not None  # nothing bounds this one
        return found

    def opened(self, opening: Sequence[int], rows: Rows) -> SharedOpening:
        """What rows begin with; they are read in trees behind it, if they can be."""
        in_trees = self.in_trees and not any(row.images or row.target for row in rows)
        return SharedOpening(self.model, self._caches.prompts, self._caches.pad, opening, in_trees)

    def read(self, shared: SharedOpening, rows: Rows) -> dict[str, list[Tensor]]:
        """The states of rows, each (1, hidden)."""
        left = [behind(row, shared.ids) for row in rows] if shared.ids else rows
        if not shared.in_trees:
            found = self.model.prompt_states(shared.inputs(left), self.layers)
            return {str(layer): list(found[layer].unsqueeze(1)) for layer in self.layers}
        call = shared.call(left)
        outputs = layer_outputs(self.model, call.inputs, self.layers)
        return {
            str(layer): [own[-1:].float() for own in call.of_rows(outputs[layer])]
            for layer in self.layers
        }

    def goes_on(self, parts: Mapping[tuple[int, ...], Rows]) -> bool:
        """Whether the base gives the same behind what rows begin with, tried on two of them.

        Args:
            parts: rows by what they begin with.
        """
        tried = next((ids for ids in parts if ids), ())
        if not tried:
            return False
        prompts, pad, rows = self._caches.prompts, self._caches.pad, parts[tried][:2]
        whole = self.read(SharedOpening(self.model, prompts, pad), rows)
        try:
            with base_errors():
                cut = self.read(self.opened(tried, rows), rows)
        except (UnsupportedBaseError, InjectionError):  # its rows are read whole
            return False
        return all(near(torch.cat(cut[layer]), torch.cat(whole[layer])) for layer in whole)
