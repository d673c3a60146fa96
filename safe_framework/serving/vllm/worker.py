"""vLLM's worker, which says before each pass which rows of the batch hear which sample.

Where a relevance head decides, a prompt is read as the base reads it. In the pass that reads its
last token the head is asked; a row that opens then has that token alone run again, through the
layers from the first fused one on: its keys and values there are written over, and what follows of
it is heard. A row that stays closed is not touched. What was decided holds for the request, also
when it is thrown out and read again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from safe_framework.core.decoding import Shape, joined, shape_of
from safe_framework.core.injection import ActiveModality
from safe_framework.core.modality import Modality
from safe_framework.errors import InjectionError
from safe_framework.serving.vllm.listening import HearingRows, WatchedPlaces
from safe_framework.serving.vllm.models import ListeningModel
from safe_framework.serving.vllm.samples import DECISION, GATE

_REMEMBERED = 1 << 16
"""Decisions that are kept; the oldest are forgotten first."""


@attrs.define(eq=False)
class _Hearer:
    """A request with a sample whose gate is not 0.

    Attributes:
        number: of the request, in the order in which they came.
        modality: that its sample is of.
        fields: the modality's part of a batch of one row.
        first: the position from which it hears.
        gate: the strength; None until it is decided.
        decision: the number by which the decision is known; None where there is none.
    """

    number: int
    modality: Modality
    fields: Mapping[str, Tensor]
    first: int
    gate: float | None
    decision: int | None
    _sample: ActiveModality | None = attrs.field(default=None, init=False)
    _made: bool = attrs.field(default=False, init=False)

    def sample(self, device: torch.device) -> ActiveModality | None:
        """What it hears; None where the gate or a mask leaves nothing. Encoded once."""
        if not self._made:
            self._sample = self.modality.activate(self.gate, self.fields, device)
            self._made, self.fields = True, {}
        return self._sample

    def asks(self, state: Tensor) -> bool:
        """Whether its relevance head opens, of what the base made of its prompt, (1, hidden)."""
        head = self.modality.relevance
        assert head is not None
        samples = None
        if head.pooled:
            self.fields = self.modality.encoded(self.fields)
            samples = self.modality.pooled(self.fields)
        return bool(head.opens(head(state, samples)))


@attrs.frozen(eq=False)
class _Stretch:
    """Tokens of a batch at which a request hears, or would.

    Attributes:
        hearer: the request.
        row: of the batch.
        start: the first of them.
        end: the token behind the last.
    """

    hearer: _Hearer
    row: int
    start: int
    end: int


class ListeningRunner(CPUModelRunner):  # type: ignore[misc]  # vLLM is not typed
    """Runs a base whose layers listen."""

    listens: ListeningModel

    def begin_to_listen(self) -> None:
        """Before the model is loaded: to know of no request that hears.

        To the runner, the model takes text alone: it then does for each batch what plain vLLM does,
        token ids and not their embeddings included. A sample takes no place in the text.
        """
        self.supports_mm_inputs, self.mm_budget = False, None
        self._numbers = itertools.count()
        self._hearers: dict[str, _Hearer] = {}
        self._decisions: dict[int, float] = {}
        self._joined: dict[tuple[int, ...], ActiveModality] = {}

    def load_model(self, load_dummy_weights: bool = False) -> None:
        """The base, and then the adapter."""
        super().load_model(load_dummy_weights)
        model: Any = self.model
        self.listens = model.listen()

    def decision(self, number: int) -> float | None:
        """The strength that a relevance head decided on; None where it did not."""
        return self._decisions.get(number)

    def _update_states(self, scheduler_output: Any) -> Any:
        """As vLLM's own, and of requests that hear as well."""
        found = super()._update_states(scheduler_output)
        for request in scheduler_output.finished_req_ids:
            self._hearers.pop(request, None)
        for new in scheduler_output.scheduled_new_reqs:
            if new.mm_features:
                self._expect(new.req_id, new.mm_features, len(new.prompt_token_ids))
        return found

    def _expect(self, request: str, features: Sequence[Any], prompt: int) -> None:
        """Know of a new request with samples.

        Args:
            request: its name.
            features: what came with it.
            prompt: how many tokens its prompt has.

        Raises:
            InjectionError: the samples themselves did not come.
        """
        (feature,) = features
        if feature.data is None:
            raise InjectionError("a request's samples did not reach the worker")
        fields = {name: value.unsqueeze(0) for name, value in feature.data.get_data().items()}
        gate: float | None = float(fields.pop(GATE))
        decision = None
        if DECISION in fields:
            decision = int(fields.pop(DECISION))
            gate = self._decisions.get(decision)  # of another answer to the same
        if gate == 0:
            return
        modality = self.listens.modality
        first = 0 if modality.attend == "all" else prompt - 1
        number = next(self._numbers)
        self._hearers[request] = _Hearer(number, modality, fields, first, gate, decision)

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        """One pass, in which the rows hear that have something to."""
        acting, undecided = list[_Stretch](), list[_Stretch]()
        for one in self._stretches() if self._hearers else ():
            if one.hearer.gate is None:
                undecided.append(one)
            elif one.hearer.sample(self.device) is not None:
                acting.append(one)
        if not acting and not undecided:
            return super()._model_forward(*args, **kwargs)
        watched = None
        if undecided:
            watched = WatchedPlaces(torch.tensor([one.start for one in undecided]))
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

    def _stretches(self) -> Iterator[_Stretch]:
        """Where requests of this batch hear, or would.

        Raises:
            InjectionError: one of them went on before it was decided whether it hears.
        """
        batch, starts = self.input_batch, self.query_start_loc.np
        for request, hearer in self._hearers.items():
            row = batch.req_id_to_index.get(request)
            if row is None:
                continue
            ahead = hearer.first - int(batch.num_computed_tokens_cpu[row])
            start, end = int(starts[row]) + max(ahead, 0), int(starts[row + 1])
            if start >= end:
                continue
            if hearer.gate is None and (ahead < 0 or end - start > 1):
                raise InjectionError("a request went on before its gate was decided")
            yield _Stretch(hearer, row, start, end)

    def _grouped(self, acting: Sequence[_Stretch]) -> list[HearingRows]:
        """The rows that hear, those together whose samples and places have one shape."""
        groups = dict[tuple[Shape, int], list[_Stretch]]()
        for one in acting:
            sample = one.hearer.sample(self.device)
            assert sample is not None
            groups.setdefault((shape_of(sample), one.end - one.start), []).append(one)
        made, rows = dict[tuple[int, ...], ActiveModality](), list[HearingRows]()
        for (_, length), group in groups.items():
            key = tuple(one.hearer.number for one in group)
            made[key] = self._joined.get(key) or joined(
                [sample for one in group if (sample := one.hearer.sample(self.device)) is not None]
            )
            starts = torch.tensor([one.start for one in group])
            rows.append(HearingRows(made[key], starts[:, None] + torch.arange(length)))
        self._joined = made  # the next pass is mostly of the same rows
        return rows

    # Deciding

    def _decide(
        self, undecided: Sequence[_Stretch], watched: WatchedPlaces, positions: Tensor, out: Tensor
    ) -> None:
        """Ask relevance heads, and let the last token of prompts be heard where they open.

        Args:
            undecided: the last tokens of prompts.
            watched: what passed there.
            positions: of the batch's tokens, in their texts.
            out: what the model gave, (tokens, hidden), which is changed where a gate opens.
        """
        assert watched.given is not None
        assert watched.left is not None
        opened = list[int]()
        for number, one in enumerate(undecided):
            self._settle(one.hearer, watched.left[number : number + 1])
            if one.hearer.sample(self.device) is not None:
                opened.append(number)
        self._hearers = {name: one for name, one in self._hearers.items() if one.gate != 0}
        if not opened:
            return
        at = torch.tensor(opened)
        places = watched.places[at]
        again = self._last_again(
            [undecided[number] for number in opened], watched.given[at], places, positions[places]
        )
        out.index_copy_(0, places, again)

    def _settle(self, hearer: _Hearer, state: Tensor) -> None:
        """Decide once for all answers to a request, of what the base made of its prompt."""
        assert hearer.decision is not None
        hearer.gate = self._decisions.get(hearer.decision)
        if hearer.gate is None:
            hearer.gate = self._decisions[hearer.decision] = float(hearer.asks(state.float()))
        if len(self._decisions) > _REMEMBERED:
            del self._decisions[next(iter(self._decisions))]

    def _last_again(
        self, opened: Sequence[_Stretch], hidden: Tensor, places: Tensor, positions: Tensor
    ) -> Tensor:
        """What the model gives at single places whose text is read, run again and heard.

        Args:
            opened: whose places they are.
            hidden: what the first fused layer was given there, (rows, hidden).
            places: in the batch, (rows,).
            positions: in their texts, (rows,).
        """
        model: Any = self.model.model
        first, residual = self.listens.layers.fused[0], None
        if first:
            residual = torch.zeros_like(hidden)
        alone = [
            attrs.evolve(one, start=number, end=number + 1) for number, one in enumerate(opened)
        ]
        attention, slots = self._attention([one.row for one in opened], places, positions)
        with (
            set_forward_context(
                attention, self.vllm_config, num_tokens=len(opened), slot_mapping=slots
            ),
            self.listens.layers.hearing(self._grouped(alone)),
        ):
            for layer in model.layers[first:]:
                hidden, residual = layer(positions, hidden, residual)
        found: Tensor = model.norm(hidden, residual)[0]
        return found

    def _attention(
        self, rows: Sequence[int], places: Tensor, positions: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """How attention of vLLM's is told of one token of each of some rows.

        Args:
            rows: of the batch.
            places: of the tokens in it, (rows,).
            positions: of the tokens in their texts, up to each of which it is looked, (rows,).

        Returns:
            By layer, what its attention is given, and where keys and values are written.
        """
        count, chosen = len(rows), torch.tensor(rows)
        starts = torch.arange(count + 1, dtype=torch.int32)
        lengths = (positions + 1).to(torch.int32)
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

    def decision(self, number: int) -> float | None:
        """The strength that a relevance head decided on, by the number of the decision."""
        found: float | None = self.model_runner.decision(number)
        return found
