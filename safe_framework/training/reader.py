"""Reads what a model says in the calls of a step, with as little work as is exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.model import SafeModel
from safe_framework.training.caches import Caches
from safe_framework.training.calls import Call, joined, together
from safe_framework.training.capture import head_of
from safe_framework.training.places import hidden_at, logits_at
from safe_framework.training.shortcuts import Shortcuts, shortcuts_of
from safe_framework.training.words import LogitWords, Words, hidden_words
from safe_framework.vocabulary_losses import takes_hidden

_PADDING = 0.25  # that calls may add to each other, where feed-forward modules see none of it
_WHOLE_PADDING = 0.05  # where they see it

Look = Callable[[nn.Module, nn.Module, Mapping[str, Any], Tensor], Tensor | None]


class Reader:
    """Runs a model, and gives the words at the places that are read.

    Args:
        model: about to be trained, in eval mode.
        caches: what is kept of the frozen base; None keeps nothing.
        shortcuts: what is known of the base; found out if None.
    """

    def __init__(
        self,
        model: SafeModel,
        caches: Caches | None = None,
        shortcuts: Shortcuts | None = None,
    ) -> None:
        self.model, self.caches = model, caches
        self.shortcuts = shortcuts_of(model) if shortcuts is None else shortcuts

    def words(self, calls: Sequence[Call]) -> Sequence[Words]:
        """What the model says at the places of each call, several calls as one where they fit."""
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
            known = attrs.evolve(known, feed_forwards=(), last=None)
        calls = [known.shortened(call) for call in calls]
        padding = _PADDING if known.feed_forwards else _WHOLE_PADDING
        alone = [[number] for number in range(len(calls))]
        found: dict[int, Tensor] = {}
        for group in together(calls, padding) if known.rows_apart else alone:
            call = joined([calls[number] for number in group])
            with self._beginning(call), known.leaving_out(call.places):
                seen = look(self.model, self.model.base, call.inputs, call.places)
            if seen is None:
                return None
            counts = [int(calls[number].places.sum()) for number in group]
            found.update(zip(group, torch.split(seen, counts), strict=True))
        return [found[number] for number in range(len(calls))]

    def _beginning(self, call: Call) -> AbstractContextManager[None]:
        if self.caches is None or call.begun is None:
            return nullcontext()
        return self.caches.beginning(call.begun)
