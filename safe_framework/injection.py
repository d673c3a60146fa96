"""One call's modalities, and how the core applies what their plugins propose.

``hidden + gate * delta`` on the rows that carry the modality; every other row keeps its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.attachment import LayerCall, hidden_of, with_hidden
from safe_framework.errors import InjectionError, PluginError
from safe_framework.fusion import FusionAdapter
from safe_framework.shapes import Memory


@attrs.define(eq=False)
class ActiveSense:
    """One modality in one call.

    Attributes:
        name: of the modality.
        fusion: its adapter.
        memory: what the adapter remembers, a row for each sample that is present.
        rows: batch rows of those samples, ascending, (present,).
        gates: the strength on each of those rows, (present,).
        batch: how many rows the call has.
    """

    name: str
    fusion: FusionAdapter
    memory: Memory
    rows: Tensor
    gates: Tensor
    batch: int
    _expanded: dict[tuple[int, torch.device], tuple[Memory, Tensor, Tensor]] = attrs.field(
        factory=dict, init=False
    )

    def apply(self, hidden: Tensor, layer: int) -> Tensor:
        """Hidden states in which the present rows carry the gated delta of ``layer``.

        Args:
            hidden: (batch * copies, length, hidden), where beams and returned sequences are
                the copies of a row, side by side.
            layer: decoder layer that is about to be called.
        """
        memory, rows, gates = self._for(hidden)
        everyone = len(rows) == hidden.shape[0]
        mine = hidden if everyone else hidden[rows]
        delta = self._propose(mine, memory, layer)
        scaled = (gates.to(delta.dtype) * delta).to(hidden.dtype)
        fused = mine + scaled
        if not torch.is_grad_enabled():  # adding 0.0 to -0.0 flips its sign bit
            fused = torch.where(scaled == 0, mine, fused)
        return fused if everyone else hidden.index_copy(0, rows, fused)

    def _for(self, hidden: Tensor) -> tuple[Memory, Tensor, Tensor]:
        """Memory, rows and gates for the copies in this layer call, computed once for each."""
        copies, rest = divmod(hidden.shape[0], self.batch)
        if rest:
            raise InjectionError(
                f"modality `{self.name}` came with {self.batch} rows, the base with "
                f"{hidden.shape[0]}",
                hint="give as many samples (None where absent) as texts",
            )
        key = (copies, hidden.device)
        if key not in self._expanded:
            self._expanded[key] = self._expand(copies, hidden.device)
        return self._expanded[key]

    def _expand(self, copies: int, device: torch.device) -> tuple[Memory, Tensor, Tensor]:
        memory, rows, gates = self.memory.to(device), self.rows.to(device), self.gates.to(device)
        if copies > 1:
            sample = torch.arange(len(rows), device=device).repeat_interleave(copies)
            copy = torch.arange(copies, device=device).repeat(len(rows))
            memory, gates = memory.rows(sample), gates[sample]
            rows = rows[sample] * copies + copy
        return memory, rows, gates[:, None, None]

    def _propose(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        """The plugin's delta; it is shown a copy, so nothing it writes reaches the base."""
        grad = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            shown = hidden.clone().to(_dtype_of(self.fusion, hidden.dtype))
            version = shown._version
            try:
                delta = self.fusion(shown, memory, layer)
            except Exception as error:
                raise self._blame(f"raised {type(error).__name__}: {error}") from error
        if shown._version != version:
            raise self._blame("wrote into the hidden states it was shown")
        if not isinstance(delta, Tensor) or delta.shape != hidden.shape:
            seen = tuple(delta.shape) if isinstance(delta, Tensor) else type(delta).__name__
            raise self._blame(f"gave {seen} for hidden states of {tuple(hidden.shape)}")
        if not delta.is_floating_point():  # an open gate below 1 would be cut to 0
            raise self._blame(f"gave {delta.dtype} for hidden states of {hidden.dtype}")
        return delta.to(hidden.device)

    def _blame(self, what: str) -> PluginError:
        plugin = type(self.fusion)
        return PluginError(
            f"fusion adapter `{plugin.__module__}.{plugin.__qualname__}` of modality "
            f"`{self.name}` {what}",
            hint="a fusion adapter must return a new delta of the same shape",
        )


def _dtype_of(fusion: FusionAdapter, default: torch.dtype) -> torch.dtype:
    floating = (p.dtype for p in fusion.parameters() if p.is_floating_point())
    return next(floating, default)


@attrs.define(eq=False)
class CallInjection:
    """The modalities of one forward or generate call.

    Each has hooks of its own, which torch runs in the order in which the modalities were added.
    """

    owner: str
    senses: Sequence[ActiveSense]
    fired: set[tuple[str, int]] = attrs.field(factory=set, init=False)

    def enter(
        self, modality: str, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall:
        """Apply what ``modality`` does at ``layer``."""
        hidden = hidden_of(args, kwargs)
        self.fired.add((modality, layer))
        for sense in self.senses:
            if sense.name == modality:
                hidden = sense.apply(hidden, layer)
        return with_hidden(args, kwargs, hidden)

    def check_fired(self) -> None:
        """Refuse a call in which a fused layer was bypassed.

        Raises:
            InjectionError: a layer's hook never ran, so its modality had no effect there.
        """
        for sense in self.senses:
            fired = {layer for name, layer in self.fired if name == sense.name}
            if missed := [layer for layer in sense.fusion.layers if layer not in fired]:
                raise InjectionError(
                    f"modality `{sense.name}` never reached decoder layers {missed}: their hooks "
                    "did not run",
                    hint="if the base is compiled, compile it after attaching; if it runs in "
                    "threads of its own (DataParallel), use one process a device",
                )
