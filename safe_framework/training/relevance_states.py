"""What relevance heads read of calls: the base's own states at their ends, kept on disk.

Calls in one prompt begin alike. What all of a run's begin with is read once, and each call behind
it, where the base gives the same but for rounding; a chat's opening is longer than most questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import on_device
from safe_framework.core.prompt_rows import PromptRow, Rows
from safe_framework.training.compute.activation_cache import ActivationCaches
from safe_framework.training.compute.base_properties import near
from safe_framework.training.compute.shared_opening import SharedOpening, behind, common_opening
from safe_framework.utils.progress import ProgressCallback, no_progress


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
    reader = EndReader(model, layers, rows)
    name = f"prompt ends {list(layers)} behind {list(reader.opening)}"
    store = reader.caches.store_of(rows, reader.read, len(layers), name)
    assert store is not None  # nothing bounds this one
    store.precompute(rows, label, progress)
    held = store.of(rows)
    return {layer: torch.cat([one[str(layer)] for one in held]) for layer in layers}


class EndReader:
    """Reads the ends of rows, behind what all of them begin with.

    Args:
        model: whose base reads them.
        layers: whose outputs are kept.
        rows: all that will be read.

    Attributes:
        caches: makes batches, and knows where states are kept.
    """

    def __init__(self, model: SafeModel, layers: Sequence[int], rows: Rows) -> None:
        self.model, self.layers = model, tuple(layers)
        self.caches = ActivationCaches(model, (), {}, model.processor.padding)
        self._shared = SharedOpening(model, self.caches.prompts, self.caches.pad)
        plain = [row for row in rows if not row.images]
        if len(plain) > 1:
            self._begin(plain)

    @property
    def opening(self) -> tuple[int, ...]:
        """Ids that are read once; none where the base must read each row whole."""
        return self._shared.ids

    def read(self, group: Rows) -> dict[str, Tensor]:
        """The states of a group of rows, each (batch, 1, hidden)."""
        cut = bool(self.opening) and not group[0].images and self._shared.begins(group)
        found = self._behind_opening(group) if cut else self._whole(group)
        return {str(layer): found[layer].unsqueeze(1) for layer in self.layers}

    def _begin(self, rows: Rows) -> None:
        """Read what rows begin with, if most do and the base can go on behind it."""
        ordered = sorted(rows, key=lambda row: row.ids)
        eighth = len(ordered) // 8  # some are texts outside prompts
        found = common_opening(self.model, ordered[eighth : len(ordered) - eighth])
        if not found:
            return
        whole = self._shared
        try:
            self._shared = SharedOpening(self.model, self.caches.prompts, self.caches.pad, found)
            tried = [row for row in rows if self._shared.begins([row])][:2]
            expected, cut = self._whole(tried), self._behind_opening(tried)
            same = all(near(cut[layer], expected[layer]) for layer in self.layers)
        except Exception:  # whatever a third-party base raises, its rows are read whole
            same = False
        if not same:
            self._shared = whole

    def _whole(self, group: Rows) -> Mapping[int, Tensor]:
        batch = on_device(self.caches.prompts.collate(group, self.caches.pad), self.model.device)
        return self.model.prompt_states(batch, self.layers)

    def _behind_opening(self, group: Rows) -> Mapping[int, Tensor]:
        rows = [behind(row, self.opening) for row in group]
        return self.model.prompt_states(self._shared.inputs(rows), self.layers)
