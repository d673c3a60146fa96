"""Reads what a model says in the calls of a step, with as little work as is exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.modality import Modality
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import head_of, hidden_at, logits_at
from safe_framework.data.frame_cache import inputs_of
from safe_framework.interfaces.types import FRAMES, FRAMES_MASK, PRESENT
from safe_framework.training.compute.activation_cache import Caches
from safe_framework.training.compute.calls import (
    Call,
    LogitWords,
    Words,
    hidden_words,
    joined,
    together,
)
from safe_framework.training.compute.chunked_vocabulary import takes_hidden
from safe_framework.training.compute.shortcuts import Shortcuts, shortcuts_of

_PADDING = 0.25  # that calls may add to each other, where feed-forward modules see none of it
_WHOLE_PADDING = 0.05  # where they see it

Look = Callable[[nn.Module, nn.Module, Mapping[str, Any], Tensor], Tensor | None]


class Reader:
    """Runs a model, and gives the words at the places that are read.

    Args:
        model: about to be trained, in eval mode.
        caches: what is kept of the frozen base; None keeps nothing.
        shortcuts: what is known of the base; found out if None.
        joins: whether calls may be made as one. Where devices share the base's layers they may
            not: all have to make as many calls, and each knows only its own rows.
    """

    def __init__(
        self,
        model: SafeModel,
        caches: Caches | None = None,
        shortcuts: Shortcuts | None = None,
        *,
        joins: bool = True,
    ) -> None:
        self.model, self.caches, self.joins = model, caches, joins
        self.shortcuts = shortcuts_of(model) if shortcuts is None else shortcuts

    def words(self, calls: Sequence[Call]) -> Sequence[Words]:
        """What the model says at the places of each call, several calls as one where they fit."""
        if len(calls) > 1:
            calls = [self._encoded(call) for call in calls]
        head = head_of(self.model.base)
        if self.shortcuts.plain and takes_hidden(head):
            hidden = self._looked(calls, hidden_at)
            if hidden is not None:
                return hidden_words(hidden, head, [call.temperatures for call in calls])
            self.shortcuts = attrs.evolve(self.shortcuts, plain=False)
        return [LogitWords(logits) for logits in self._looked(calls, logits_at) or ()]

    def _looked(self, calls: Sequence[Call], look: Look) -> list[Tensor] | None:
        """What is looked at in each call, (words, ...); None where it cannot be seen."""
        known = self.shortcuts
        if self.model.is_gradient_checkpointing:  # a layer that is run again runs whole
            known = attrs.evolve(known, feed_forwards=(), last=None, packs=False)
        calls = [known.shortened(call) for call in calls]
        groups = [[number] for number in range(len(calls))]
        if self.joins and known.rows_apart:
            groups = together(calls, _most_padding(known))
        found: dict[int, Tensor] = {}
        for group in groups:
            seen = self._seen(joined([calls[number] for number in group]), look, known)
            if seen is None:
                return None
            counts = [int(calls[number].places.sum()) for number in group]
            found.update(zip(group, torch.split(seen, counts), strict=True))
        return [found[number] for number in range(len(calls))]

    def _seen(self, call: Call, look: Look, known: Shortcuts) -> Tensor | None:
        """What is looked at in a call, packed where that pays."""
        packing = known.packing(call) if self.joins else None
        if packing is None:
            with self._beginning(call.begun), known.leaving_out(call.places):
                return look(self.model, self.model.base, call.inputs, call.places)
        places = packing.places(call.places)
        begun = None if call.begun is None else packing.rows(call.begun)
        with self._beginning(begun), known.leaving_out(places), packing.entered(self.model):
            seen = look(self.model, self.model.base, call.inputs, places)
        return None if seen is None else packing.in_order(seen, places)

    def _encoded(self, call: Call) -> Call:
        """The call with frames instead of samples: of these it is known how to fill them up."""
        inputs = dict(call.inputs)
        for name in self.model.modalities:
            own = inputs_of(name, inputs)
            if FRAMES in own or f"{name}__{PRESENT}" not in inputs:
                continue
            modality, rows = self.model.modality(name), inputs[f"{name}__{PRESENT}"].bool()
            inputs = {key: inputs[key] for key in inputs if key.partition("__")[0] != name}
            inputs |= {
                f"{name}__{key}": value for key, value in _framed(modality, own, rows).items()
            }
        return attrs.evolve(call, inputs=inputs)

    def _beginning(self, begun: Sequence[Tensor] | None) -> AbstractContextManager[None]:
        if self.caches is None or begun is None:
            return nullcontext()
        return self.caches.beginning(begun)


def _most_padding(known: Shortcuts) -> float:
    """That calls may add to each other by becoming one."""
    if known.packs:
        return math.inf
    return _PADDING if known.feed_forwards else _WHOLE_PADDING


def _framed(modality: Modality, own: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """A modality's part of a call, encoded; ``rows`` have a sample, (batch,)."""
    if not rows.any():
        values = torch.zeros(len(rows), 1, modality.encoder.dim, device=rows.device)
        mask = torch.zeros(len(rows), 1, dtype=torch.bool, device=rows.device)
        return {PRESENT: rows, FRAMES: values, FRAMES_MASK: mask}
    frames = modality.encode({key: value[rows] for key, value in own.items()})
    values = frames.values.new_zeros(len(rows), *frames.values.shape[1:])
    mask = frames.mask.new_zeros(len(rows), frames.mask.shape[1])
    at = rows.nonzero().squeeze(-1).to(values.device)
    values, mask = values.index_copy(0, at, frames.values), mask.index_copy(0, at, frames.mask)
    return {PRESENT: rows, FRAMES: values, FRAMES_MASK: mask}
