"""vLLM's worker, which says before each pass which rows of the batch hear which samples.

Where a relevance head decides, a prompt is read as the base reads it. In the pass that reads its
last token the head is asked; a row that opens then has that token alone run again, through the
layers from the first fused one on: its keys and values there are written over, and what follows of
it is heard. A row that stays closed is not touched. What was decided holds for the request, also
when it is thrown out and read again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from vllm.distributed import get_tp_group
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from safe_framework.core.decoding import Shape, joined, shape_of
from safe_framework.core.injection import ActiveModality
from safe_framework.core.modality import Modality
from safe_framework.core.prompt_states import PromptEnd
from safe_framework.errors import InjectionError
from safe_framework.serving.vllm.adapter import told_of_refusal
from safe_framework.serving.vllm.listening import HearingRows, WatchedPlaces
from safe_framework.serving.vllm.models import ListeningModel
from safe_framework.serving.vllm.samples import DECISION, GATE, KIND

_REMEMBERED = 1 << 16
"""Decisions that are kept; the oldest are forgotten first."""


@attrs.define(eq=False)
class _Sense:
    """A request's samples of one modality, whose gate is not 0.

    Attributes:
        modality: that they are of.
        order: of the modality among those of the adapter.
        fields: the modality's part of a batch of one row.
        first: the position from which they are heard.
        gate: the strength; None until it is decided.
    """

    modality: Modality
    order: int
    fields: Mapping[str, Tensor]
    first: int
    gate: float | None
    _sample: ActiveModality | None = attrs.field(default=None, init=False)
    _made: bool = attrs.field(default=False, init=False)

    def sample(self, device: torch.device) -> ActiveModality | None:
        """What is heard; None where the gate or a mask leaves nothing. Encoded once."""
        if not self._made:
            self._sample = self.modality.activate(self.gate, self.fields, device)
            self._made, self.fields = True, {}
        return self._sample

    def asks(self, left: Mapping[int, Tensor]) -> bool:
        """Whether its relevance head opens, of what the base made of the prompt.

        Args:
            left: by layer, what it left at the prompt's last tokens, (tokens, hidden).
        """
        head = self.modality.relevance
        assert head is not None
        samples = None
        if head.pooled:
            self.fields = self.modality.encoded(self.fields)
            samples = self.modality.pooled(self.fields)
        states = left[head.layer][-head.columns :].float().unsqueeze(0)
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return bool(head.opens(head(PromptEnd(states, mask), samples)))


@attrs.define(eq=False)
class _Hearer:
    """A request that hears something.

    Attributes:
        number: of the request, in the order in which they came.
        senses: whose samples it has, in the order in which they act.
        last: the position of its prompt's last token.
        decision: the number by which what is decided of it is known; None where nothing is.
        left: by layer that a head reads, what it left at the last tokens so far.
    """

    number: int
    senses: list[_Sense]
    last: int
    decision: int | None
    left: dict[int, Tensor] = attrs.field(factory=dict, init=False)

    @property
    def undecided(self) -> bool:
        """Whether a relevance head is to be asked yet."""
        return any(sense.gate is None for sense in self.senses)

    @property
    def columns(self) -> int:
        """How many of the prompt's last tokens heads read."""
        heads = [sense.modality.relevance for sense in self.senses if sense.gate is None]
        return max((head.columns for head in heads if head is not None), default=1)

    def keep(self, layer: int, left: Tensor, computed: int) -> None:
        """Keep what a layer left at tokens of the prompt, behind those before.

        Args:
            layer: that a head reads.
            left: there, (tokens, hidden).
            computed: how many tokens were read before; 0 where it is read anew.
        """
        before = self.left.get(layer) if computed else None
        whole = left if before is None else torch.cat([before, left])
        self.left[layer] = whole[-self.columns :]


@attrs.frozen(eq=False)
class _Stretch:
    """Tokens of a batch at which a request hears one of its senses.

    Attributes:
        hearer: the request.
        sense: that it hears.
        start: the first of them.
        end: the token behind the last.
    """

    hearer: _Hearer
    sense: _Sense
    start: int
    end: int


@attrs.frozen(eq=False)
class _Undecided:
    """Tokens of a prompt of which a relevance head is to be asked.

    Attributes:
        hearer: the request.
        row: of the batch.
        start: the first that is watched.
        end: the token behind the last.
        computed: how many tokens were read before this pass.
        ends: whether the prompt ends here.
    """

    hearer: _Hearer
    row: int
    start: int
    end: int
    computed: int
    ends: bool


class ListeningRunner(CPUModelRunner):  # type: ignore[misc]  # vLLM is not typed
    """Runs a base whose layers listen."""

    listens: ListeningModel

    def begin_to_listen(self) -> None:
        """Before the model is loaded: to know of no request that hears.

        To the runner, a model that sees no pictures takes text alone: it then does for each batch
        what plain vLLM does, token ids and not their embeddings included. A sample takes no place
        in the text.
        """
        if not self.model_config.hf_config.safe_sees:
            self.supports_mm_inputs, self.mm_budget = False, None
        self._numbers = itertools.count()
        self._hearers: dict[str, _Hearer] = {}
        self._decisions: dict[int, dict[str, float]] = {}
        self._joined: dict[tuple[int, ...], ActiveModality] = {}
        self._acting: list[tuple[int, int, int, int]] = []
        self._rows: list[HearingRows] = []

    def load_model(self, load_dummy_weights: bool = False) -> None:
        """The base, and then the adapter."""
        super().load_model(load_dummy_weights)
        model: Any = self.model
        with told_of_refusal():
            self.listens = model.listen()
            self.listens.try_out(self.vllm_config, 3 if self.uses_mrope else 0)

    def decision(self, number: int) -> dict[str, float] | None:
        """The strengths that relevance heads decided on, by modality; None where none did."""
        return self._decisions.get(number)

    def _update_states(self, scheduler_output: Any) -> Any:
        """As vLLM's own, and of requests that hear as well."""
        found = super()._update_states(scheduler_output)
        for request in scheduler_output.finished_req_ids:
            self._hearers.pop(request, None)
        for new in scheduler_output.scheduled_new_reqs:
            for feature in new.mm_features:
                if feature.modality == KIND:
                    self._expect(new.req_id, feature, len(new.prompt_token_ids))
        return found

    def _init_mrope_positions(self, req_state: Any) -> None:
        """As vLLM's own, which asks the model where its pictures are, and knows no samples."""
        features = req_state.mm_features
        req_state.mm_features = [one for one in features if one.modality != KIND]
        try:
            super()._init_mrope_positions(req_state)
        finally:
            req_state.mm_features = features

    def _expect(self, request: str, feature: Any, prompt: int) -> None:
        """Know of a new request with samples.

        Args:
            request: its name.
            feature: what came with it.
            prompt: how many tokens its prompt has.

        Raises:
            InjectionError: the samples themselves did not come.
        """
        if feature.data is None:
            raise InjectionError("a request's samples did not reach the worker")
        fields = {name: value.unsqueeze(0) for name, value in feature.data.get_data().items()}
        decision = int(fields.pop(DECISION)) if DECISION in fields else None
        known = {} if decision is None else self._decisions.get(decision, {})
        by_name = dict[str, dict[str, Tensor]]()
        for key, value in fields.items():
            name, _, rest = key.partition("__")
            by_name.setdefault(name, {})[rest] = value
        senses = list[_Sense]()
        for order, (name, modality) in enumerate(self.listens.modalities.items()):
            if name not in by_name:
                continue
            strength = float(by_name[name].pop(GATE))
            gate = known.get(name) if strength != strength else strength  # NaN: a head decides
            first = 0 if modality.attend == "all" else prompt - 1
            senses.append(_Sense(modality, order, by_name[name], first, gate))
        self._hear(request, _Hearer(next(self._numbers), senses, prompt - 1, decision))

    def _hear(self, request: str, hearer: _Hearer) -> None:
        """Let a request hear what its gates leave open, if they leave anything."""
        hearer.senses = [sense for sense in hearer.senses if sense.gate != 0]
        if hearer.senses:
            self._hearers[request] = hearer
        else:
            self._hearers.pop(request, None)

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        """One pass, in which the rows hear that have something to."""
        acting, undecided = self._stretches() if self._hearers else ([], {})
        if not acting and not undecided:
            return super()._model_forward(*args, **kwargs)
        watched = None
        if undecided:
            places = [torch.arange(one.start, one.end) for one in undecided.values()]
            watched = WatchedPlaces(torch.cat(places))
        with self.listens.layers.hearing(self._grouped(acting), watched):
            out: Tensor = super()._model_forward(*args, **kwargs)
        if watched is not None:
            self._decide(undecided, watched, kwargs["positions"], out)
        return out

    def sample_tokens(self, grammar_output: Any) -> Any:
        """As vLLM's own, in which no row whose prompt is not read yet draws from its own seed.

        vLLM lets such rows draw too and turns their generators back, which those of processors
        cannot: a prompt in pieces and a seed would end the engine.
        """
        generators = self.input_batch.generators
        unread = self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0].tolist()
        kept = {row: generators.pop(row) for row in unread if row in generators}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(kept)

    def _stretches(self) -> tuple[list[_Stretch], dict[str, _Undecided]]:
        """Where requests of this batch hear, and of which, by name, heads are to be asked now.

        Raises:
            InjectionError: one of them went on before it was decided whether it hears.
        """
        batch, starts = self.input_batch, self.query_start_loc.np
        acting, undecided = list[_Stretch](), dict[str, _Undecided]()
        for request, hearer in self._hearers.items():
            row = batch.req_id_to_index.get(request)
            if row is None:
                continue
            computed = int(batch.num_computed_tokens_cpu[row])
            start, end = int(starts[row]), int(starts[row + 1])
            if hearer.undecided:
                place = start + hearer.last - computed
                if place < start or place < end - 1:
                    raise InjectionError("a request went on before its gate was decided")
                if start < end:
                    first = max(start, end - hearer.columns)
                    undecided[request] = _Undecided(hearer, row, first, end, computed, place < end)
                continue
            for sense in hearer.senses:
                first = start + max(sense.first - computed, 0)
                if first < end and sense.sample(self.device) is not None:
                    acting.append(_Stretch(hearer, sense, first, end))
        return acting, undecided

    def _grouped(self, acting: Sequence[_Stretch]) -> list[HearingRows]:
        """The rows that hear, those together whose samples and places have one shape.

        The senses are in the order in which they act on one row. While answers go on, one pass's
        are the next one's.
        """
        known = [(one.hearer.number, one.sense.order, one.start, one.end) for one in acting]
        if known != self._acting:
            self._acting, self._rows = known, self._group(acting)
        return self._rows

    def _group(self, acting: Sequence[_Stretch]) -> list[HearingRows]:
        groups = dict[tuple[int, Shape, int], list[_Stretch]]()
        for one in sorted(acting, key=lambda one: one.sense.order):
            sample = one.sense.sample(self.device)
            assert sample is not None
            alike = one.sense.order, shape_of(sample), one.end - one.start
            groups.setdefault(alike, []).append(one)
        made, rows = dict[tuple[int, ...], ActiveModality](), list[HearingRows]()
        for (order, _, length), group in groups.items():
            key = (order, *(one.hearer.number for one in group))
            made[key] = self._joined.get(key) or joined(
                [sample for one in group if (sample := one.sense.sample(self.device)) is not None]
            )
            starts = torch.tensor([one.start for one in group])
            rows.append(HearingRows(made[key], starts[:, None] + torch.arange(length)))
        self._joined = made  # the next pass is mostly of the same rows
        return rows

    # Deciding

    def _decide(
        self,
        undecided: Mapping[str, _Undecided],
        watched: WatchedPlaces,
        positions: Tensor,
        out: Tensor,
    ) -> None:
        """Ask relevance heads, and let the last token of prompts be heard where something is open.

        Args:
            undecided: tokens of prompts, by request.
            watched: what passed there.
            positions: of the batch's tokens, in their texts, (tokens,) or, where a base counts in
                several dimensions, (dimensions, tokens).
            out: what the model gave, (tokens, hidden), which is changed where a gate opens.
        """
        assert watched.given is not None
        opened, at = list[_Undecided](), list[int]()
        sizes = [one.end - one.start for one in undecided.values()]
        left = {layer: torch.split(found, sizes) for layer, found in watched.left.items()}
        behind = itertools.accumulate(sizes)  # of each among what was watched
        for number, ((request, one), end) in enumerate(zip(undecided.items(), behind, strict=True)):
            for layer, found in left.items():
                one.hearer.keep(layer, found[number], one.computed)
            if not one.ends:
                continue
            self._settle(one.hearer, one.hearer.left)
            one.hearer.left = {}
            self._hear(request, one.hearer)
            if any(sense.sample(self.device) is not None for sense in one.hearer.senses):
                opened.append(one)
                at.append(end - 1)
        if not opened:
            return
        places = watched.places[at]
        again = self._last_again(opened, watched.given[at], places, positions[..., places])
        out.index_copy_(0, places, again)

    def _settle(self, hearer: _Hearer, left: Mapping[int, Tensor]) -> None:
        """Decide once for all answers to a request, of what the base made of its prompt."""
        assert hearer.decision is not None
        open_ = [sense for sense in hearer.senses if sense.gate is None]
        known = self._decisions.get(hearer.decision)
        if known is None:
            opens = torch.tensor([float(sense.asks(left)) for sense in open_])
            if get_tp_group().world_size > 1:  # the processes must not part here
                get_tp_group().broadcast(opens)
            names = [sense.modality.name for sense in open_]
            known = dict(zip(names, opens.tolist(), strict=True))
            self._decisions[hearer.decision] = known
        for sense in open_:
            sense.gate = known[sense.modality.name]
        if len(self._decisions) > _REMEMBERED:
            del self._decisions[next(iter(self._decisions))]

    def _last_again(
        self, opened: Sequence[_Undecided], hidden: Tensor, places: Tensor, positions: Tensor
    ) -> Tensor:
        """What the model gives at single places whose text is read, run again and heard.

        Args:
            opened: whose places they are.
            hidden: what the first fused layer was given there, (rows, hidden).
            places: in the batch, (rows,).
            positions: in their texts, (..., rows).
        """
        alone = [
            _Stretch(one.hearer, sense, number, number + 1)
            for number, one in enumerate(opened)
            for sense in one.hearer.senses
            if sense.sample(self.device) is not None
        ]
        attention, slots = self._attention(opened, places, positions)
        with (
            set_forward_context(
                attention,
                self.vllm_config,
                num_tokens=len(opened),
                slot_mapping=slots,
                skip_compiled=True,
            ),
            self.listens.layers.hearing(self._grouped(alone), again=hidden),
        ):
            return self.listens.run(torch.zeros(len(opened), dtype=torch.long), positions)

    def _attention(
        self, opened: Sequence[_Undecided], places: Tensor, positions: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """How attention of vLLM's is told of the last token of some prompts.

        Args:
            opened: of which requests.
            places: of the tokens in the batch, (rows,).
            positions: of the tokens in their texts, (..., rows).

        Returns:
            By layer, what its attention is given, and where keys and values are written.
        """
        count, chosen = len(opened), torch.tensor([one.row for one in opened])
        starts = torch.arange(count + 1, dtype=torch.int32)
        lengths = torch.tensor([one.hearer.last + 1 for one in opened], dtype=torch.int32)
        attention, slots = dict[str, Any](), dict[str, Tensor]()
        for number, group in enumerate(self.kv_cache_config.kv_cache_groups):
            table = self.input_batch.block_table[number]
            written = table.slot_mapping.gpu[places]
            common = CommonAttentionMetadata(
                query_start_loc=starts,
                query_start_loc_cpu=starts,
                seq_lens=lengths,
                seq_lens_cpu_upper_bound=lengths,
                num_reqs=count,
                num_actual_tokens=count,
                max_query_len=1,
                max_seq_len=int(lengths.max()),
                block_table_tensor=table.get_device_tensor(self.input_batch.num_reqs)[chosen],
                slot_mapping=written,
                positions=positions,
                is_prefilling=torch.zeros(count, dtype=torch.bool),
            )
            for kind in self.attn_groups[number]:
                attention.update(dict.fromkeys(kind.layer_names, kind.build_metadata(common)))
            slots.update(dict.fromkeys(group.layer_names, written))
        return attention, slots


class ListeningWorker(CPUWorker):  # type: ignore[misc]  # vLLM is not typed
    """vLLM's worker on processors, whose runner is the one above."""

    def init_device(self) -> None:
        """As vLLM's own."""
        super().init_device()
        self.model_runner.__class__ = ListeningRunner
        self.model_runner.begin_to_listen()

    def decision(self, number: int) -> dict[str, float] | None:
        """The strengths that relevance heads decided on, by the number of the decision."""
        found: dict[str, float] | None = self.model_runner.decision(number)
        return found
