"""One ``forward`` or ``generate`` of a SafeModel: the base's own, with the modalities that are on.

Off is a branch not taken: where no modality is on, the base is called and nothing else. A
mixture-of-experts base computes the tokens of a whole batch together by expert, so what one row
attends to can move the last bits of another; there the call can be made twice, without and with the
modalities, and each row is taken from the run that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.attend import (
    ActingPositions,
    acting_positions,
    prompt_ends,
    real_columns,
    text_columns,
)
from safe_framework.core.attention_probe import AttentionProbe
from safe_framework.core.base_change import BaseChange, use_changed_base
from safe_framework.core.base_model import generation_pad_id, input_device
from safe_framework.core.beginning_again import (
    HeldStreamer,
    RandomState,
    keeps_states,
)
from safe_framework.core.compilation import compiles, keep_uncompiled
from safe_framework.core.deciding import DecidingCall, PendingModality
from safe_framework.core.injection import ActiveModality, CallInjection
from safe_framework.core.kept_cache import KeptCache
from safe_framework.core.last_position import LastPosition
from safe_framework.core.layer_discovery import LayerStack, decodes_separately, in_encoder
from safe_framework.core.layer_hooks import use_injection, use_watcher
from safe_framework.core.markers.call import (
    PreparedCall,
    by_keyword,
    cached_columns,
    prepare_call,
)
from safe_framework.core.markers.embeddings import Markers
from safe_framework.core.modality import RowGates
from safe_framework.core.processor import padding_id
from safe_framework.core.prompt_states import (
    PromptEnd,
    PromptRead,
    PromptReader,
    PromptStates,
    Silent,
    never_read,
)
from safe_framework.errors import SafeError

Gate = RowGates | Mapping[str, RowGates]
"""Strength of a call: one number or ``"auto"``, one for each row, or either by modality."""


def gate_of(gate: Gate | None, name: str) -> RowGates | None:
    """What a call's ``gate`` says of one modality; None where it says nothing."""
    return gate.get(name) if isinstance(gate, Mapping) else gate


@attrs.frozen(eq=False)
class ModelCall:
    """What one call of a SafeModel needs to know of it.

    Attributes:
        base: that is called.
        owner: key of the model, by which its hooks know the call.
        stack: the base's layers.
        modalities: those that are on, in the order in which they were added.
        pending: those of which a relevance head decides.
        fused: the layers of every attached modality, in that order.
        markers: of every attached modality that has some.
        base_change: what Stage B changed in the base; None where it is as it was.
        attention_probe: records what text attends to, where it is enabled.
        tokenizer: of the base, for the id that fills rows up.
        split_rows: run the rows that carry no modality apart.
        runs_alone: whether the last position of a text can be run by itself.
        note: is told what was decided, by modality and row, and how many columns the base read.
    """

    base: nn.Module
    owner: str
    stack: LayerStack
    modalities: Sequence[ActiveModality]
    pending: Sequence[PendingModality]
    fused: Mapping[str, Sequence[int]]
    markers: Mapping[str, Markers]
    base_change: BaseChange | None
    attention_probe: AttentionProbe
    tokenizer: Any
    split_rows: bool
    runs_alone: Callable[[], bool]
    note: Callable[[Mapping[str, Tensor], int | None], None]

    def forward(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> Any:
        """What the base's ``forward`` returns."""
        return self._run(self.base, args, inputs, {})

    def generate(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> Any:
        """What the base's ``generate`` returns."""
        generate: Any = self.base.generate
        return self._run(generate, args, inputs, keep_uncompiled(self.base))

    def prompt_states(
        self, inputs: Mapping[str, Any], layers: Collection[int], columns: int
    ) -> dict[int, PromptEnd]:
        """The base's own states at the last positions of each row's prompt, by layer."""
        call = prepare_call(self.base, (), inputs, self.markers, (), self._padding_id)
        ends, length = prompt_ends(call.inputs, separate_decoder=self._separate_decoder)
        generating = is_prompt(self.base, call.inputs)
        cached = cached_columns(call.inputs) if generating else 0
        real = real_columns(call.inputs, length)
        states = PromptStates(ends, length, self.stack, frozenset(layers), columns, cached, real)
        changed = self.base_change.call() if self.base_change is not None else None
        reader = use_watcher(PromptReader(self.owner, states))
        silent = use_injection(Silent(self.owner))
        with silent, use_changed_base(changed), reader, suppress(PromptRead):
            if generating:  # as it is read to be answered
                generate: Any = self.base.generate
                generate(**call.inputs, max_new_tokens=1, **keep_uncompiled(self.base))
            else:
                self.base(*call.args, **call.inputs)
        if lacking := states.unread():
            raise never_read(lacking)
        return {layer: states.end(layer) for layer in layers}

    def _decided(
        self,
        method: Callable[..., Any],
        args: Sequence[Any],
        inputs: Mapping[str, Any],
        uncompiled: Mapping[str, Any],
    ) -> Any:
        """Call ``method``, in which heads decide of the pending modalities."""
        call = prepare_call(method, args, inputs, self.markers, (), self._padding_id)
        named = by_keyword(method, call.args) | dict(call.inputs)
        deciding = self._deciding(call, named, method is not self.base)
        streamer = HeldStreamer.of(named)
        again = streamer.given(call.inputs)
        kept, random = KeptCache.of(named.get("past_key_values")), RandomState.now()
        changed = self.base_change.call() if self.base_change is not None else None
        injected, watched = use_injection(deciding), use_watcher(deciding)
        with injected, watched, use_changed_base(changed), suppress(PromptRead):
            out = method(*call.args, **{**again, **uncompiled})
            if deciding.gates is None:
                raise never_read([deciding.deciding_layer])
            if deciding.injection is not None:
                deciding.injection.check_fired()
            self.note(deciding.gates, text_columns(named))
            return call.restored(out)
        assert deciding.gates is not None
        kept.restore()
        random.restore()
        known = attrs.evolve(self, modalities=deciding.modalities, pending=())
        out = known._run(method, args, streamer.given(inputs), uncompiled)
        read = prepare_call(method, args, inputs, self.markers, known.modalities, self._padding_id)
        self.note(deciding.gates, text_columns(by_keyword(method, read.args) | dict(read.inputs)))
        return out

    def _deciding(
        self, call: PreparedCall, named: Mapping[str, Any], generating: bool
    ) -> DecidingCall:
        """What decides in a call, and how it goes on."""
        separate = self._separate_decoder
        cached = cached_columns(named) if generating else 0
        states = {}
        for one in self.pending:
            ends, length = prompt_ends(named, call.moved(one.first), separate_decoder=separate)
            states[one.name] = PromptStates(
                ends, length, self.stack, frozenset([one.head.layer]), one.head.columns, cached,
                real_columns(named, length),
            )  # fmt: skip
        ahead = compiles(self.base, named, generating)
        whole = (
            ahead
            or self.split_rows
            or call.columns is not None
            or self.attention_probe.enabled
            or keeps_states(self.base, named)
            or not self.runs_alone()
        )
        names = {one.name for one in self.pending} | {one.name for one in self.modalities}
        fused = min(layer for name in names for layer in self.fused[name])

        def settle(gates: Mapping[str, Tensor]) -> list[ActiveModality]:
            """The modalities that are on, in the order in which they were added."""
            found = {one.name: one for one in self.modalities}
            for one in self.pending:
                active = one.activate(gates[one.name], input_device(self.base), self.stack.layout)
                found |= {} if active is None else {one.name: active}
            return [found[name] for name in self.fused if name in found]

        def continued(modalities: Sequence[ActiveModality], columns: int) -> CallInjection | None:
            """What is injected once the last position has been run again."""
            for active in modalities:
                acting = self._acting(active, call, named, generating)
                if acting is None and not (separate and columns == 1):
                    return None
                if acting is not None:
                    first = acting.first[active.rows.cpu()]
                    if bool((first != acting.length - 1).any()):
                        return None
                active.acting = None if acting is None else acting.read()
            return CallInjection(self.owner, modalities, self.stack.passes, self.stack.entry)

        return DecidingCall(
            self.owner,
            self.pending,
            states,
            settle,
            max(one.head.layer for one in self.pending) if whole else self.stack.count - 1,
            ahead,
            None if whole else LastPosition(fused),
            continued,
        )

    @property
    def _separate_decoder(self) -> bool:
        """Whether the layers read a text of their own, beside the prompt."""
        layers = self.stack.of(self.base)
        return decodes_separately(self.base) and not in_encoder(self.base, layers)

    def _run(
        self,
        method: Callable[..., Any],
        args: Sequence[Any],
        inputs: Mapping[str, Any],
        uncompiled: Mapping[str, Any],
    ) -> Any:
        """Call ``method``, with ``uncompiled`` among its keywords where a hook has to run."""
        if self.pending:
            return self._decided(method, args, inputs, uncompiled)
        call = prepare_call(method, args, inputs, self.markers, self.modalities, self._padding_id)
        changed = self.base_change.call() if self.base_change is not None else None

        def without_modalities() -> Any:
            """The base's call, with no modality on."""
            eager = uncompiled if changed is not None else {}
            with use_injection(None), use_changed_base(changed):
                return method(*call.args, **{**call.inputs, **eager})

        def with_modalities() -> Any:
            """The base's call, with the modalities that are on."""
            stack = self.stack
            named = by_keyword(method, call.args) | dict(call.inputs)
            for active in self.modalities:
                active.acting = self._acting(active, call, named, method is not self.base)
            injection = CallInjection(
                self.owner, self.modalities, stack.passes, stack.entry, call.prompts
            )
            recording = self.attention_probe.recording(
                self.modalities, call.inputs, method is not self.base
            )
            with use_injection(injection), use_changed_base(changed), recording:
                out = method(*call.args, **{**call.inputs, **uncompiled})
            injection.check_fired()
            return out

        if not self.modalities:
            return without_modalities()
        rows, batch = union([one.rows for one in self.modalities]), self.modalities[0].batch
        if not self.split_rows or len(rows) == batch:
            return call.restored(with_modalities())
        check_splittable(inputs)
        pad = generation_pad_id(self.base)
        return call.restored(
            run_rows_separately(without_modalities, with_modalities, rows, batch, pad)
        )

    def _acting(
        self,
        active: ActiveModality,
        call: PreparedCall,
        named: Mapping[str, Any],
        generating: bool,
    ) -> ActingPositions | None:
        """Where in the text of a call a modality acts; None for everywhere."""
        prompt = call.prompts.get(active.name)
        return acting_positions(
            active.attend,
            call.moved(active.first),
            named,
            separate_decoder=decodes_separately(self.base),
            cached=cached_columns(named) if generating else 0,
            places=None if prompt is None else prompt.positions,
            rows=active.rows,
            name=active.name,
        )

    def _padding_id(self) -> int:
        return padding_id(self.tokenizer, generation_pad_id(self.base))


_UNMERGED = ("past_key_values", "loss")


def is_prompt(base: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a call's texts are ready to be answered by ``generate`` of the base."""
    can: Any = getattr(base, "can_generate", None)
    if can is None or not can():
        return False
    mask = inputs.get("attention_mask")
    ready = not isinstance(mask, Tensor) or mask.ndim != 2 or bool(mask[:, -1].all())
    return ready and not any(name == "labels" or name.startswith("decoder_") for name in inputs)


def run_rows_separately(
    without_modalities: Callable[[], Any],
    with_modalities: Callable[[], Any],
    rows: Tensor,
    batch: int,
    fill: int,
) -> Any:
    """Both calls from the same random state, and each row from the one that it belongs to.

    Args:
        without_modalities: its results stand for every row not in ``rows``.
        with_modalities: the same call with them.
        rows: that carry a modality, ascending, (present,).
        batch: how many rows a call has.
        fill: token id after the end of a shorter generated text.

    Returns:
        What the base returns, but for a cache, and for whatever has no row for each sample.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        without = without_modalities()
    return _merge(without, with_modalities(), rows, batch, fill)


def check_splittable(inputs: Mapping[str, Any]) -> None:
    """Refuse a call that cannot be made twice.

    Raises:
        SafeError: it continues a cache, or asks for one loss over all rows.
    """
    for name in ("past_key_values", "labels", "streamer"):
        if inputs.get(name) is not None:
            raise SafeError(
                f"`split_rows` cannot take `{name}` in a batch of which only some rows carry a "
                "modality",
                hint="give those rows a call of their own",
            )


def _merge(without: Any, present: Any, rows: Tensor, batch: int, fill: int) -> Any:
    def merged(first: Any, second: Any) -> Any:
        """The same for a part of both outputs."""
        return _merge(first, second, rows, batch, fill)

    if isinstance(without, Tensor):
        return _merged_tensor(without, present, rows, batch, fill)
    if isinstance(without, Mapping):  # a ModelOutput
        kept = {
            key: merged(value, present[key])
            for key, value in without.items()
            if key not in _UNMERGED
        }
        return type(without)(**kept)
    if isinstance(without, (tuple, list)):
        return type(without)(map(merged, without, present))
    return None


def _merged_tensor(
    without: Tensor, present: Tensor, rows: Tensor, batch: int, fill: int
) -> Tensor | None:
    if not without.ndim or without.shape[0] % batch:
        return None
    copies = without.shape[0] // batch
    copy = torch.arange(copies, device=rows.device).repeat(len(rows))
    positions = (rows.repeat_interleave(copies) * copies + copy).to(without.device)
    if without.shape != present.shape:  # texts of different lengths
        without, present = _as_long(without, present, fill), _as_long(present, without, fill)
    return without.index_copy(0, positions, present[positions])


def _as_long(texts: Tensor, others: Tensor, fill: int) -> Tensor:
    missing = max(others.shape[1] - texts.shape[1], 0)
    return torch.nn.functional.pad(texts, (0, missing), value=fill)


def union(rows: Sequence[Tensor]) -> Tensor:
    """The numbers that are in any of ``rows``, which are ascending: each once and in order."""
    if len(rows) == 1:
        return rows[0]
    found: Tensor = torch.unique(torch.cat(list(rows)))
    return found
