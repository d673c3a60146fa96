"""One call in which relevance heads decide, row by row, whether modalities are on.

The base reads the prompt with no modality on, which is what a closed gate leaves. At its last
position the heads decide. Where every gate stays closed, the call goes on and nothing of it was
ours (law L9). Where one opens, the last position is run again with the modalities on, if it can be
run by itself, and the call goes on with them; else the call begins again with the gates known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.injection import ActiveModality, CallInjection
from safe_framework.core.last_position import LastPosition, with_last
from safe_framework.core.layer_discovery import Layout
from safe_framework.core.layer_hooks import LayerCall
from safe_framework.core.modality import Modality
from safe_framework.core.prompt_states import (
    PromptEnd,
    PromptRead,
    PromptStates,
    output_of,
    with_output,
)
from safe_framework.core.relevance import RelevanceHead
from safe_framework.interfaces.types import FROM, PRESENT


@attrs.frozen(eq=False)
class Decided:
    """What heads decided in one call.

    Attributes:
        model: id of the model whose call it was.
        gates: by modality, the strength on each row, (batch,).
        columns: of the text that the base read, from which markers of closed gates are gone; None
            where nothing was decided.
    """

    model: int = 0
    gates: Mapping[str, Tensor] = attrs.field(factory=dict)
    columns: int | None = None


_LATEST: ContextVar[Decided | None] = ContextVar("safe_framework_decided", default=None)


def note_decided(
    model: object, gates: Mapping[str, Tensor] | None = None, columns: int | None = None
) -> None:
    """Keep what was decided in a call of ``model``, for this thread or task alone."""
    _LATEST.set(Decided(id(model), gates or {}, columns))


def latest_decided(model: object) -> Decided:
    """What was decided in the latest call, if that was one of ``model``."""
    latest = _LATEST.get()
    return latest if latest is not None and latest.model == id(model) else Decided()


@attrs.define(eq=False)
class PendingModality:
    """A modality of which a head decides, on some rows of a call.

    Attributes:
        modality: with its head.
        inputs: its part of the batch, without the ``NAME__`` prefix.
        gates: the strength on each row, NaN where the head decides, (batch,).
    """

    modality: Modality
    inputs: Mapping[str, Tensor]
    gates: Tensor

    @property
    def name(self) -> str:
        """Of the modality."""
        return self.modality.name

    @property
    def head(self) -> RelevanceHead:
        """That decides."""
        assert self.modality.relevance is not None
        return self.modality.relevance

    @property
    def first(self) -> Tensor | None:
        """``NAME__from`` of the call."""
        return self.inputs.get(FROM)

    def decide(self, read: PromptEnd) -> Tensor:
        """The strength on each row, 0 where its gate stays closed, (batch,).

        Args:
            read: what the base made of the end of each row's prompt.
        """
        present = self.inputs[PRESENT].bool()
        held = (present if present.ndim == 1 else present.any(1)).to(self.gates.device)
        asked = self.gates.isnan() & held
        gates = self.gates.nan_to_num(0.0)
        if not bool(asked.any()):
            return gates * held
        samples, device = None, self.head.weight.device
        if self.head.pooled:
            rows = asked.to(present.device)
            wanted = present & (rows if present.ndim == 1 else rows.unsqueeze(1))
            # Frames of closed rows are not needed again; those of open ones are.
            self.inputs = self.modality.encoded({**self.inputs, PRESENT: present})
            samples = self.modality.pooled({**self.inputs, PRESENT: wanted}).to(device)
        opens = self.head.opens(self.head(read, samples)).to(gates.device)
        return torch.where(asked & opens, 1.0, gates) * held

    def activate(
        self, gates: Tensor, device: torch.device, layout: Layout
    ) -> ActiveModality | None:
        """What it does in the call at these strengths; None where it is off on every row."""
        return self.modality.activate(gates, self.inputs, device, layout)


@attrs.define(eq=False)
class DecidingCall:
    """What a call does while nothing is decided, and after it.

    Both the injection and the watcher of the call.

    Attributes:
        owner: key of the model.
        pending: the modalities of which heads decide.
        states: what each of them reads, by name.
        settle: gives the modalities that are on, of the strength of each pending one by row.
        deciding_layer: after which the heads decide.
        ends_always: let the call begin again even if every gate stays closed.
        last_position: is run again where a gate opens; None begins the call again.
        continued: gives the injection of the rest of the call, where it can go on with modalities,
            of these and of how many columns the layers were called with last.
        gates: what was decided, by name; None before that.
        modalities: those that are on since.
    """

    owner: str
    pending: Sequence[PendingModality]
    states: Mapping[str, PromptStates]
    settle: Callable[[Mapping[str, Tensor]], Sequence[ActiveModality]]
    deciding_layer: int
    ends_always: bool
    last_position: LastPosition | None
    continued: Callable[[Sequence[ActiveModality], int], CallInjection | None]
    gates: dict[str, Tensor] | None = attrs.field(default=None, init=False)
    modalities: Sequence[ActiveModality] = attrs.field(default=(), init=False)
    injection: CallInjection | None = attrs.field(default=None, init=False)

    def enter(
        self, modality: str, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall:
        """The layer's own arguments, unless a modality is on since."""
        if self.injection is None:
            return args, kwargs
        return self.injection.enter(modality, layer, args, kwargs)

    def embed(self, modality: str, ids: object, embedded: Tensor) -> Tensor | None:
        """None: with markers in its text, a call begins again."""
        return None

    def leave(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> Any:
        """Read what a layer gave, and decide once the prompt is read.

        Raises:
            PromptRead: the call has to begin again, with the gates known.
        """
        if self.gates is not None:
            return None
        if self.last_position is not None:
            self.last_position.note(layer, module, args, kwargs, out)
        read = [
            states.take(layer, out)
            for states in self.states.values()
            if layer == self.deciding_layer or layer in states.wanted
        ]
        if layer != self.deciding_layer or not all(read):
            return None
        with torch.no_grad():
            self.gates = {
                one.name: one.decide(self.states[one.name].end(one.head.layer))
                for one in self.pending
            }
        self.modalities = self.settle(self.gates)
        if not self.modalities and not self.ends_always:
            self.last_position = None
            return None
        if (hidden := self._run_again(output_of(out))) is None:
            raise PromptRead
        return with_output(out, hidden)

    def _run_again(self, hidden: Tensor) -> Tensor | None:
        """What the last layer gives with the modalities on; None where the call begins again."""
        last, self.last_position = self.last_position, None
        beyond = any(states.beyond for states in self.states.values())
        if self.ends_always or beyond or last is None:
            return None
        injection = self.continued(self.modalities, last.columns)
        if injection is None:
            return None
        batch = self.modalities[0].batch
        copies = len(hidden) // batch
        open_rows = torch.unique(torch.cat([one.rows.cpu() for one in self.modalities]))
        rows = (open_rows[:, None] * copies + torch.arange(copies)).flatten()
        alone = last.again(self.modalities, rows)
        if alone is None:
            return None
        for one in self.modalities:
            for layer in one.fusion.layers:
                injection.fired[one.name, layer] += 1
        self.injection = injection
        return with_last(hidden, alone, rows)
