"""One call's modalities, and how the core applies what their plugins propose.

``hidden + gate * delta`` on the rows that carry the modality; every other row keeps its bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.config.schema import Attend
from safe_framework.core.attend import ActingPositions
from safe_framework.core.layer_discovery import PLAIN, Layout
from safe_framework.core.layer_hooks import (
    LayerCall,
    get_hidden_states,
    has_cache,
    set_hidden_states,
)
from safe_framework.core.markers.embeddings import MarkerInjection
from safe_framework.errors import InjectionError, PluginError
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.types import Memory, Tokens
from safe_framework.utils.torch_private import write_count


@attrs.frozen(eq=False)
class InlineTokens:
    """What the projector gave, where it stands in the text.

    Attributes:
        values: tokens of each row's samples, one after another, (batch, tokens, hidden).
        mask: True where fusion may attend, (batch, tokens).
        lengths: how many of them stand in each row's text, (batch,); what follows is padding.
    """

    values: Tensor
    mask: Tensor
    lengths: Tensor


class Unfused(FusionAdapter):
    """In place of a fusion adapter where a modality gives nothing but words: it has no layer."""

    layers = ()

    def remember(self, tokens: Tokens) -> Memory:
        """Nothing."""
        return Memory({}, tokens.mask)

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        """No delta; never asked for."""
        return torch.zeros_like(hidden)


@attrs.define(eq=False)
class ActiveModality:
    """One modality in one call.

    Attributes:
        name: of the modality.
        fusion: its adapter.
        memory: what the adapter remembers, a row for each row of the batch that has a sample.
        rows: which rows these are, ascending, (present,).
        gates: the strength on each of those rows, (present,).
        batch: how many rows the call has.
        layout: axes of the base's hidden states.
        tokens: what the projector gave for those rows, where it stands in the text.
        attend: where in the text it acts, if ``first`` does not say it.
        first: the column of each of the call's texts at which it begins to act, (batch,).
        acting: the same as the base reads its text; None for everywhere.
        around: what to enter while the adapter works at a layer; None for nothing.
        shown: the first of a layer's positions that the adapter was shown last, and at which of
            them its delta counts, (present, positions); None for all.
    """

    name: str
    fusion: FusionAdapter
    memory: Memory
    rows: Tensor
    gates: Tensor
    batch: int
    layout: Layout = PLAIN
    tokens: InlineTokens | None = None
    attend: Attend = "all"
    first: Tensor | None = None
    acting: ActingPositions | None = None
    around: Callable[[int], AbstractContextManager[None]] | None = None
    _expanded: dict[tuple[int, torch.device], tuple[Memory, Tensor, Tensor | None]] = attrs.field(
        factory=dict, init=False
    )
    _dtype: torch.dtype | None = attrs.field(init=False)
    shown: tuple[int, Tensor | None] = attrs.field(default=(0, None), init=False)

    def __attrs_post_init__(self) -> None:
        """Look for the adapter's type once, since every layer and step asks for it."""
        floating = (p.dtype for p in self.fusion.parameters() if p.is_floating_point())
        self._dtype = next(floating, None)

    def apply(self, hidden: Tensor, layer: int, *, keeps: bool = True) -> Tensor:
        """Hidden states in which the present rows carry the gated delta of ``layer``.

        Args:
            hidden: of ``batch * copies`` samples, where beams and returned sequences are the
                copies of a row, side by side; its axes are those of ``layout``.
            layer: that is about to be called.
            keeps: whether it was handed a cache of keys and values.
        """
        columns, first = hidden.shape[self.layout.length], None
        if self.acting is not None:
            first = self.acting.within(layer, columns, keeps=keeps)
        self.shown = 0, None
        if first is None:
            return self._fused(hidden, layer, None)
        first = first[self.rows.cpu()]  # (present,)
        start = int(first.min())
        if start >= columns:
            return hidden
        counts = torch.arange(start, columns) >= first[:, None]  # (present, columns shown)
        acting = None if bool(counts.all()) else counts
        self.shown = start, acting
        behind = hidden.narrow(self.layout.length, start, columns - start)
        fused = self._fused(behind, layer, acting)
        # A clone keeps the strides, on which the base's own kernels, and so its bits, depend.
        out = hidden.clone()
        out.narrow(self.layout.length, start, columns - start).copy_(fused)
        return out

    def apply_everywhere(self, hidden: Tensor, layer: int) -> Tensor:
        """The same where it acts on every position of ``hidden``."""
        self.shown = 0, None
        return self._fused(hidden, layer, None)

    def _fused(self, hidden: Tensor, layer: int, acting: Tensor | None) -> Tensor:
        """The same of positions that the adapter is shown; the delta of some may not count.

        Args:
            hidden: of these positions.
            layer: that is about to be called.
            acting: True where it counts, (present, length); None for everywhere.
        """
        memory, rows, gates = self._for(hidden)
        everyone = len(rows) == hidden.shape[self.layout.batch]
        present = hidden if everyone else hidden.index_select(self.layout.batch, rows)
        delta = self._propose(self.layout.to_canonical(present), memory, layer)
        gated = delta if gates is None else gates.to(delta.dtype) * delta
        scaled = self.layout.from_canonical(gated).to(hidden.dtype)
        fused = present + scaled
        if not torch.is_grad_enabled():  # adding 0.0 to -0.0 flips its sign bit
            fused = torch.where(scaled == 0, present, fused)
        if acting is not None:
            copies = len(rows) // len(acting)
            wide = acting.to(hidden.device).repeat_interleave(copies, 0).unsqueeze(-1)
            fused = torch.where(self.layout.from_canonical(wide), fused, present)
        if not everyone:
            return hidden.clone().index_copy_(self.layout.batch, rows, fused)
        return fused if fused.stride() == hidden.stride() else hidden.clone().copy_(fused)

    def _for(self, hidden: Tensor) -> tuple[Memory, Tensor, Tensor | None]:
        """Memory, rows and gates for the copies in this layer call, computed once for each.

        The gates are None where all are 1, by which nothing has to be multiplied.
        """
        samples = hidden.shape[self.layout.batch]
        copies, rest = divmod(samples, self.batch)
        if rest:
            raise InjectionError(
                f"modality `{self.name}` came with {self.batch} rows, the base with {samples}",
                hint="give as many samples (None where absent) as texts",
            )
        key = (copies, hidden.device)
        if key not in self._expanded:
            self._expanded[key] = self._expand(copies, hidden.device)
        return self._expanded[key]

    def _expand(self, copies: int, device: torch.device) -> tuple[Memory, Tensor, Tensor | None]:
        memory, rows, gates = self.memory.to(device), self.rows.to(device), self.gates.to(device)
        if copies > 1:
            sample = torch.arange(len(rows), device=device).repeat_interleave(copies)
            copy = torch.arange(copies, device=device).repeat(len(rows))
            memory, gates = memory.rows(sample), gates[sample]
            rows = rows[sample] * copies + copy
        return memory, rows, None if bool((gates == 1).all()) else gates[:, None, None]

    def _propose(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        """The plugin's delta; it is shown a copy, so nothing it writes reaches the base."""
        grad = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            shown = hidden.to(self._dtype or hidden.dtype, copy=True)
            writes = write_count(shown)
            try:
                delta = self._call_plugin(shown, memory, layer)
            except Exception as error:
                raise self._blame(f"raised {type(error).__name__}: {error}") from error
        if write_count(shown) != writes:
            raise self._blame("wrote into the hidden states it was shown")
        if not isinstance(delta, Tensor) or delta.shape != hidden.shape:
            seen = tuple(delta.shape) if isinstance(delta, Tensor) else type(delta).__name__
            raise self._blame(f"gave {seen} for hidden states of {tuple(hidden.shape)}")
        if not delta.is_floating_point():  # an open gate below 1 would be cut to 0
            raise self._blame(f"gave {delta.dtype} for hidden states of {hidden.dtype}")
        return delta.to(hidden.device)

    def _call_plugin(self, shown: Tensor, memory: Memory, layer: int) -> Any:
        if self.around is None:
            return self.fusion(shown, memory, layer)
        with self.around(layer):
            return self.fusion(shown, memory, layer)

    def _blame(self, what: str) -> PluginError:
        plugin = type(self.fusion)
        return PluginError(
            f"fusion adapter `{plugin.__module__}.{plugin.__qualname__}` of modality "
            f"`{self.name}` {what}",
            hint="a fusion adapter must return a new delta of the same shape",
        )


@attrs.define(eq=False)
class CallInjection:
    """The modalities of one forward or generate call.

    Each has hooks of its own, which torch runs in the order in which the modalities were added.

    Attributes:
        owner: key of the SafeModel whose call it is.
        modalities: those that are on.
        passes: how often one forward call runs each layer.
        entry: on which of these passes a modality enters, from 0.
        prompts: by modality, where the vectors of its markers stand.
        fired: how often each layer was called for each modality.
    """

    owner: str
    modalities: Sequence[ActiveModality]
    passes: int = 1
    entry: int = 0
    prompts: Mapping[str, MarkerInjection] = attrs.field(factory=dict)
    fired: Counter[tuple[str, int]] = attrs.field(factory=Counter, init=False)

    def enter(
        self, modality: str, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall:
        """Apply what ``modality`` does at ``layer``."""
        turn = self.fired[modality, layer] % self.passes
        self.fired[modality, layer] += 1
        if turn != self.entry:
            return args, kwargs
        hidden = get_hidden_states(args, kwargs)
        for active in self.modalities:
            if active.name == modality and layer in active.fusion.layers:
                keeps = active.acting is not None and has_cache(args, kwargs)
                hidden = active.apply(hidden, layer, keeps=keeps)
        return set_hidden_states(args, kwargs, hidden)

    def embed(self, modality: str, ids: object, embedded: Tensor) -> Tensor | None:
        """What the base's look-up of ``ids`` gives with ``modality``'s markers."""
        prompt = self.prompts.get(modality)
        return None if prompt is None else prompt.embed(ids, embedded)

    def check_fired(self) -> None:
        """Refuse a call in which a fused layer or a marker was bypassed.

        Raises:
            InjectionError: a layer's hook never ran, so its modality had no effect there, or
                the base never looked up the words among which the markers stand.
        """
        if lost := [name for name, prompt in self.prompts.items() if not prompt.complete]:
            raise InjectionError(
                f"the markers of {', '.join(f'`{name}`' for name in lost)} never reached the "
                "base: it did not look its text up in its input embeddings",
                hint="if the base is compiled, compile it after attaching; else leave `markers` "
                "out",
            )
        for active in self.modalities:
            layers = active.fusion.layers
            if missed := [layer for layer in layers if not self.fired[active.name, layer]]:
                raise InjectionError(
                    f"modality `{active.name}` never reached layers {missed}: their hooks "
                    "did not run",
                    hint="if the base is compiled, let safe_framework.compile(model) do it; if it "
                    "runs in threads of its own (DataParallel), use one process a device",
                )
