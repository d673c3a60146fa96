"""What relevance heads read of calls: the base's own states at their ends, kept on disk.

Calls in one prompt begin alike. What all of a run's begin with is read once, and each call behind
it, where the base gives the same but for rounding; a chat's opening is longer than most questions.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptRow, Rows
from safe_framework.training.compute.activation_cache import ActivationCaches
from safe_framework.training.compute.base_properties import near
from safe_framework.utils.progress import ProgressCallback, no_progress

_WORTH = 4  # tokens: reading fewer again costs nothing


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
        opening: ids that are read once; none where the base must read each row whole.
    """

    def __init__(self, model: SafeModel, layers: Sequence[int], rows: Rows) -> None:
        self.model, self.layers = model, tuple(layers)
        self.caches = ActivationCaches(model, (), {}, model.processor.padding)
        self._past: Any = None
        self.opening: tuple[int, ...] = ()
        plain = [row for row in rows if not row.images]
        if len(plain) > 1:
            self._begin(plain)

    def read(self, group: Rows) -> dict[str, Tensor]:
        """The states of a group of rows, each (batch, 1, hidden)."""
        count = len(self.opening)
        cut = count and not group[0].images
        if cut and all(row.ids[:count] == self.opening and len(row) > count for row in group):
            found = self._behind_opening(group)
        else:
            found = self._whole(group)
        return {str(layer): found[layer].unsqueeze(1) for layer in self.layers}

    def _begin(self, rows: Rows) -> None:
        """Read what rows begin with, if most do and the base can go on behind it."""
        base: Any = self.model.base
        if decodes_separately(base) or "position_ids" not in _parameters(base):
            return
        ordered = sorted(row.ids for row in rows)
        eighth = len(ordered) // 8  # some are texts outside prompts
        middle = ordered[eighth : len(ordered) - eighth]
        pairs = zip(middle[0], middle[-1], strict=False)  # the first and the last in order
        opening = tuple(
            one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        )
        tried = [row for row in rows if row.ids[: len(opening)] == opening]
        tried = [row for row in tried if len(row) > len(opening)][:2]
        if len(opening) < _WORTH or len(tried) < 2:
            return
        try:
            self.opening, self._past = opening, self._read_opening(opening)
            whole, cut = self._whole(tried), self._behind_opening(tried)
            same = all(near(cut[layer], whole[layer]) for layer in self.layers)
        except Exception:  # whatever a third-party base raises, its rows are read whole
            same = False
        if not same:
            self.opening, self._past = (), None

    @torch.no_grad()
    def _read_opening(self, opening: Sequence[int]) -> Any:
        ids = torch.tensor([opening], device=self.model.device)
        with self.model.off():
            found = self.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True
            ).past_key_values
        return found

    def _whole(self, group: Rows) -> Mapping[int, Tensor]:
        batch = self.caches.prompts.collate(group, self.caches.pad)
        moved = {key: value.to(self.model.device) for key, value in batch.items()}
        return self.model.prompt_states(moved, self.layers)

    def _behind_opening(self, group: Rows) -> Mapping[int, Tensor]:
        count = len(self.opening)
        rows = [PromptRow(row.ids[count:]) for row in group]
        batch = self.caches.prompts.collate(rows, self.caches.pad)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        past = copy.deepcopy(self._past)
        past.batch_repeat_interleave(len(group))
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.cat([mask.new_ones(len(group), count), mask], dim=1),
            "position_ids": (count + torch.arange(ids.shape[1])).expand(len(group), -1),
        }
        moved = {key: value.to(self.model.device) for key, value in inputs.items()}
        return self.model.prompt_states({**moved, "past_key_values": past}, self.layers)


def _parameters(base: Any) -> Mapping[str, Any]:
    return inspect.signature(base.forward).parameters
