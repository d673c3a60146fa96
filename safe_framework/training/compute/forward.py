"""Runs the calls of a training step with as little computation as is exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.base_errors import base_errors
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import hidden_at, logits_at, no_cache_option, output_head
from safe_framework.data.frame_cache import modality_inputs
from safe_framework.errors import InjectionError, UnsupportedBaseError
from safe_framework.interfaces.types import FRAMES, FROM, PRESENT
from safe_framework.training.compute.activation_cache import ActivationCaches
from safe_framework.training.compute.base_properties import (
    BaseProperties,
    find_base_properties,
)
from safe_framework.training.compute.calls import (
    ForwardCall,
    LogitPredictions,
    Predictions,
    group_calls,
    hidden_predictions,
    merge_calls,
)
from safe_framework.training.compute.chunked_vocabulary import supports_chunked_loss
from safe_framework.training.compute.packing import Packing
from safe_framework.training.compute.prompt_cache import with_past
from safe_framework.utils.tensors import near

_PADDING = 0.25  # share that merging calls may add, where feed-forward modules skip padding
_COMPUTED_PADDING = 0.05  # where they do not

Readout = Callable[[nn.Module, nn.Module, Mapping[str, Any], Tensor], Tensor | None]


class ForwardPlanner:
    """Runs a model, and gives its predictions at the positions that are read.

    Args:
        model: about to be trained, in eval mode.
        caches: activations of the frozen base; None stores nothing.
        properties: what is known of the base; found out if None.
        merges: whether calls may be merged or packed. Where devices share the base's layers they
            may not: all have to make as many calls, and each knows only its own rows.
    """

    def __init__(
        self,
        model: SafeModel,
        caches: ActivationCaches | None = None,
        properties: BaseProperties | None = None,
        *,
        merges: bool = True,
    ) -> None:
        self.model, self.caches, self.merges = model, caches, merges
        self.properties = find_base_properties(model) if properties is None else properties
        self._packs_pictures: bool | None = None  # not tried yet

    def predictions(self, calls: Sequence[ForwardCall]) -> Sequence[Predictions]:
        """The model's predictions at the positions of each call, calls merged where they fit."""
        if len(calls) > 1:
            calls = [self._encode_samples(call) for call in calls]
        head = output_head(self.model.base)
        if self.properties.plain_head and supports_chunked_loss(head):
            hidden = self._read_out(calls, hidden_at)
            if hidden is not None:
                return hidden_predictions(hidden, head, [call.temperatures for call in calls])
            self.properties = attrs.evolve(self.properties, plain_head=False)
        return [LogitPredictions(logits) for logits in self._read_out(calls, logits_at) or ()]

    def _read_out(self, calls: Sequence[ForwardCall], readout: Readout) -> list[Tensor] | None:
        """What is read of each call, (tokens, ...); None where the base does not let it be read."""
        known = self.properties
        if self.model.is_gradient_checkpointing:  # a layer that is computed again is computed whole
            known = attrs.evolve(known, feed_forwards=(), last_feed_forward=None, packs=False)
        calls = [known.truncated(call) for call in calls]
        groups = [[number] for number in range(len(calls))]
        if self.merges and known.rows_independent:
            groups = group_calls(calls, _allowed_padding(known))
        found: dict[int, Tensor] = {}
        for group in groups:
            read = self._run(merge_calls([calls[number] for number in group]), readout, known)
            if read is None:
                return None
            counts = [int(calls[number].positions.sum()) for number in group]
            found.update(zip(group, torch.split(read, counts), strict=True))
        return [found[number] for number in range(len(calls))]

    def _run(self, call: ForwardCall, readout: Readout, known: BaseProperties) -> Tensor | None:
        """What is read of one call, packed where that is worthwhile."""
        if call.past is not None:
            with self._from_prefix(call, call.prefix_states), known.computing_only(call.positions):
                return readout(self.model, self.model.base, with_past(call), call.positions)
        packing = known.plan_packing(call) if self.merges else None
        if packing is not None and call.pictures and not self._pictures_pack(call, packing):
            packing = None
        if packing is None:
            with self._from_prefix(call, call.prefix_states), known.computing_only(call.positions):
                return readout(self.model, self.model.base, call.inputs, call.positions)
        return self._run_packed(call, packing, readout, known)

    def _run_packed(
        self, call: ForwardCall, packing: Packing, readout: Readout, known: BaseProperties
    ) -> Tensor | None:
        """What is read of one call, whose rows are packed."""
        positions = packing.pack_mask(call.positions)
        states = None if call.prefix_states is None else packing.pack_rows(call.prefix_states)
        packed = packing.applied_to(self.model)
        with self._from_prefix(call, states), known.computing_only(positions), packed:
            read = readout(self.model, self.model.base, call.inputs, positions)
        return None if read is None else packing.unpack_selected(read, positions)

    @torch.no_grad()
    def _pictures_pack(self, call: ForwardCall, packing: Packing) -> bool:
        """Whether rows with pictures give packed what they give apart, tried on the first ones.

        A base may count positions by the shape of its pictures, which a packed row has lost.
        """
        if self._packs_pictures is None:
            training = self.model.training
            self.model.eval()
            try:
                with base_errors():
                    with torch.random.fork_rng(), self._from_prefix(call, call.prefix_states):
                        apart = logits_at(self.model, self.model.base, call.inputs, call.positions)
                    packed = self._run_packed(call, packing, logits_at, self.properties)
                self._packs_pictures = packed is not None and near(packed, apart)
            except (UnsupportedBaseError, InjectionError):  # its rows stay apart
                self._packs_pictures = False
            finally:
                self.model.train(training)
        return self._packs_pictures

    def _encode_samples(self, call: ForwardCall) -> ForwardCall:
        """The call with frames instead of samples, since frames can be padded."""
        inputs = dict(call.inputs)
        for name in self.model.modalities:
            columns, present = modality_inputs(name, inputs), inputs.get(f"{name}__{PRESENT}")
            if FRAMES in columns or present is None:
                continue
            encoded = self.model.modality(name).encoded({**columns, PRESENT: present})
            kept = {key for key in inputs if key.partition("__")[0] != name}
            inputs = {key: inputs[key] for key in inputs if key in kept | {f"{name}__{FROM}"}}
            inputs |= {f"{name}__{key}": value for key, value in encoded.items()}
        return attrs.evolve(call, inputs=inputs)

    def _from_prefix(
        self, call: ForwardCall, states: Sequence[Tensor] | None
    ) -> AbstractContextManager[None]:
        if self.caches is None or states is None:
            return nullcontext()
        return self.caches.start_from_prefix(states, pictures=call.pictures)


class PlainForward:
    """Runs each call whole and by itself: what a ``ForwardPlanner`` has to agree with.

    Args:
        model: about to be trained, in eval mode.
    """

    def __init__(self, model: SafeModel) -> None:
        self.model = model

    def predictions(self, calls: Sequence[ForwardCall]) -> Sequence[Predictions]:
        """The model's predictions at the positions of each call, out of all its logits."""
        return [LogitPredictions(self._logits(call)[call.positions]) for call in calls]

    def _logits(self, call: ForwardCall) -> Tensor:
        logits: Tensor = self.model(**call.inputs, **no_cache_option(self.model.base)).logits
        return logits


def _allowed_padding(known: BaseProperties) -> float:
    """Share of padding that merging calls may add."""
    if known.packs:
        return math.inf
    return _PADDING if known.feed_forwards else _COMPUTED_PADDING
