"""What is ours inside vLLM: at a fused layer's input, samples for the rows that hear them.

A batch of vLLM is flat: the new tokens of all requests behind each other. Before each forward pass
the worker says at which of them which samples act; at each fused layer those places are changed,
all rows that hear at once, and no other is touched, so that rows without a sample keep their bits.
In a pass in which nobody hears, each such layer asks whether there is something to do, and that is
all. Whether samples were heard at every fused layer is checked after each pass.

A compiled graph would keep what was true while it was traced. So there the asking is an operation
of its own, which the graph calls each time and cannot look into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.injection import ActiveModality
from safe_framework.errors import InjectionError
from safe_framework.serving.vllm.layer_form import LayerForm, Trial


@attrs.frozen(eq=False)
class HearingRows:
    """Rows of a batch that hear a sample each, at equally many places.

    Attributes:
        sample: what they hear, in a call of as many rows.
        places: of each row's tokens in the batch, (rows, tokens).
    """

    sample: ActiveModality
    places: Tensor


@attrs.define(eq=False)
class WatchedPlaces:
    """Places of a batch at which it is looked what passes through the layers.

    Attributes:
        places: in the batch, (rows,).
        given: what the first fused layer is given there, (rows, hidden).
        left: by layer that a relevance head reads, what it leaves there, (rows, hidden).
    """

    places: Tensor
    given: Tensor | None = None
    left: dict[int, Tensor] = attrs.field(factory=dict)


@attrs.define(eq=False)
class _Pass:
    """One forward pass: who hears in it, what is watched, and which layers came by.

    Attributes:
        rows: who hears.
        watched: what is looked at.
        again: what the first fused layer is to be given in place of what the pass would give it;
            None in a pass of its own.
        fired: layers that came by.
    """

    rows: Sequence[HearingRows]
    watched: WatchedPlaces | None
    again: Tensor | None = None
    fired: set[int] = attrs.field(factory=set)


_HEARING: ContextVar[ListeningLayers | None] = ContextVar("safe_framework_hearing", default=None)
"""Whose pass it is. A compiled graph cannot say it: vLLM keeps it on disk for another process."""


class ListeningLayers:
    """The decoder layers of one model, some of which listen.

    Args:
        layers: of vLLM's model. Their weights and names stay.
        fused: numbers of those at whose input samples act.
        read: numbers of those whose output a relevance head reads. Where there are any, a prompt's
            last token may run again from the first fused layer on.

    Attributes:
        fused: as given, each once, ascending.

    Raises:
        SafeError: a layer is given no hidden states.
    """

    def __init__(
        self, layers: Sequence[nn.Module], fused: Iterable[int], read: Iterable[int] = ()
    ) -> None:
        self.fused, self.read = tuple(sorted({*fused})), frozenset(read)
        self._pass: _Pass | None = None
        self._trial: Trial | None = None
        before = range(self.fused[0]) if self.read else ()
        self._forms: dict[int, LayerForm] = {}
        for number in sorted({*self.fused, *self.read, *before}):
            self._let_listen(layers[number], number)

    @contextmanager
    def hearing(
        self,
        rows: Sequence[HearingRows],
        watched: WatchedPlaces | None = None,
        *,
        again: Tensor | None = None,
    ) -> Iterator[None]:
        """Within the block, the next pass is heard in as ``rows`` says.

        Args:
            rows: of the batch; where several change a place, in the order in which they do.
            watched: is filled in.
            again: what the first fused layer was given at these tokens before, (tokens, hidden),
                and is given now; no layer before it runs.

        Raises:
            InjectionError: a layer that was to listen did not come by.
        """
        current = self._pass = _Pass(rows, watched, again)
        token = _HEARING.set(self)
        try:
            yield
        finally:
            self._pass = None
            _HEARING.reset(token)
        if missed := [layer for layer in self.fused if layer not in current.fired]:
            raise InjectionError(
                f"requests with a sample were not heard at layers {missed}: they did not listen",
                hint="start with --enforce-eager",
            )
        if watched is not None and (watched.given is None or self.read - watched.left.keys()):
            raise InjectionError(f"layers {sorted(self.read)} never told what relevance heads read")

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Within the block, one pass is run in which it is seen how layers hand on hidden states.

        Raises:
            SafeError: a layer does so in a way of which nothing is known, or did not come by.
        """
        self._trial = Trial()
        try:
            yield
        finally:
            found, self._trial = self._trial, None
        found.check(list(self._forms))
        self._forms = found.forms

    def enter(self, layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Change what a layer is given, in place: what it reads is the sum of the two.

        Args:
            layer: that is about to run.
            hidden: of all new tokens, (tokens, hidden).
            residual: what they are added to; None where they are added to nothing.
        """
        current = self._pass
        if current is None or layer not in self.fused:
            return
        if layer == self.fused[0]:
            if current.again is not None:
                hidden.copy_(current.again)
                if residual is not None:
                    residual.zero_()
            if current.watched is not None:
                current.watched.given = _at(current.watched.places, hidden, residual)
        current.fired.add(layer)
        for row in current.rows:
            if layer not in row.sample.fusion.layers:
                continue
            places = row.places.flatten()
            states = _at(places, hidden, residual).view(*row.places.shape, -1)
            fused = row.sample.apply_everywhere(states, layer)  # (rows, tokens, hidden)
            hidden.index_copy_(0, places, fused.flatten(0, 1))
            if residual is not None:
                residual.index_fill_(0, places, 0)

    def leave(self, layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Look at what a layer leaves: the sum of the two."""
        current = self._pass
        if current is not None and current.watched is not None and layer in self.read:
            current.watched.left[layer] = _at(current.watched.places, hidden, residual)

    def _skips(self, layer: int) -> bool:
        """Whether a layer is not to run now, as what it would make is known."""
        return self._pass is not None and self._pass.again is not None and layer < self.fused[0]

    def _let_listen(self, layer: nn.Module, number: int) -> None:
        kind: Any = type(layer)
        self._forms[number] = LayerForm.of(kind)
        listening, read, fused = self, number in self.read, number in self.fused

        class ListeningLayer(kind):  # type: ignore[misc]  # known only now
            """The same layer, at whose input samples enter."""

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                """As the layer's own."""
                if torch.compiler.is_compiling():
                    form = listening._forms[number]
                    if fused:
                        _enter(*form.given(args, kwargs), number)
                    found = kind.forward(self, *args, **kwargs)
                    if read:
                        _leave(*form.left(found), number)
                    return found
                if listening._trial is not None:
                    form = listening._forms[number]
                    run = partial(kind.forward, self)
                    return listening._trial.of_layer(number, form, run, args, kwargs)
                if listening._pass is None:
                    return kind.forward(self, *args, **kwargs)
                form = listening._forms[number]
                if listening._skips(number):
                    return form.passed_on(args, kwargs)
                listening.enter(number, *form.given(args, kwargs))
                found = kind.forward(self, *args, **kwargs)
                listening.leave(number, *form.left(found))
                return found

        layer.__class__ = ListeningLayer


@torch.library.custom_op("safe_framework::enter", mutates_args=("hidden", "residual"))
def _enter(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    """As ``ListeningLayers.enter`` of those whose pass it is, in a compiled graph."""
    if (listening := _HEARING.get()) is not None:
        listening.enter(layer, hidden, residual)


@torch.library.custom_op("safe_framework::leave", mutates_args=("hidden",))
def _leave(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    """As ``ListeningLayers.leave``; a graph leaves out what is not said to change anything."""
    if (listening := _HEARING.get()) is not None:
        listening.leave(layer, hidden, residual)


def _at(places: Tensor, hidden: Tensor, residual: Tensor | None) -> Tensor:
    """What a layer reads at some places, as a copy, (places, hidden)."""
    found = hidden.index_select(0, places)
    return found if residual is None else found + residual.index_select(0, places)
