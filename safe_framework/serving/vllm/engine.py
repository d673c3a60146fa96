"""The engine ``vllm`` of ``safe serve``: vLLM's own, in processes of its own.

Requests are read as by the engine ``transformers``, and vLLM is handed their ids and what was
prepared of their samples. It decodes, samples and batches; texts are made of its tokens here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path
from typing import Any

import attrs

from safe_framework.core.model import SafeModel
from safe_framework.core.pictures import opened
from safe_framework.core.relevance import AUTO
from safe_framework.errors import SafeError
from safe_framework.serving.answer_text import AnswerText
from safe_framework.serving.embedded import (
    EmbeddedEngine,
    EngineLoad,
    PreparedRequest,
    RequestTicket,
)
from safe_framework.serving.engine import (
    Failed,
    FinishReason,
    Heard,
    Piece,
    Request,
    Sampling,
    Sink,
    StoppedError,
    TokenLogprob,
)
from safe_framework.serving.vllm.adapter import refusals
from safe_framework.serving.vllm.arguments import memory_arguments
from safe_framework.serving.vllm.samples import (
    GATE,
    KIND,
    PreparedSamples,
    check_can_decide,
    new_decision,
)
from safe_framework.utils.suggest import nearest


@attrs.define(eq=False)
class VllmTicket(RequestTicket):
    """A request in the engine.

    Attributes:
        begun: whether a token of it has come.
        task: that answers it.
        decision: the number by which vLLM tells what a relevance head decided.
    """

    begun: bool = False
    task: Future[None] | None = None
    decision: int = attrs.field(factory=new_decision)
    _heard: bool = attrs.field(default=False, init=False)
    _telling: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)

    async def tell_heard(self, engine: Any) -> None:
        """Tell, before anything else and once, at what strength each modality acts.

        Args:
            engine: vLLM's, which has read the prompt if a relevance head decides.

        Raises:
            SafeError: what was decided is not known.
        """
        async with self._telling:
            if self._heard:
                return
            gates = dict(self.request.gates)
            if AUTO in gates.values():
                (decided, *_) = await engine.collective_rpc("decision", args=(self.decision,))
                if decided is None:
                    raise SafeError("vLLM does not know what a relevance head decided")
                gates |= decided
            self.tell(Heard({name: float(strength) for name, strength in gates.items()}))
            self._heard = True

    def cancel(self) -> None:
        """Give it up: it is decoded no further, and its sink is told no more."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()


class VllmEngine:
    """Answers requests by vLLM.

    Args:
        model: the adapter, whose base's weights vLLM holds.
        folder: of the adapter.
        max_batch: rows that are decoded together.
        max_tokens: of an answer.
        options: of vLLM's engine, by its own names.
    """

    name = "vllm"

    def __init__(
        self,
        model: SafeModel,
        folder: Path,
        *,
        max_batch: int = 8,
        max_tokens: int = 1024,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.max_tokens = model, max_tokens
        self._reader = EmbeddedEngine(model, max_batch=max_batch, max_tokens=max_tokens)
        self._arguments = {
            "max_num_seqs": max_batch, "enforce_eager": True, **(options or {}),
            "model": str(folder),
        }  # fmt: skip
        self._numbers = itertools.count()
        self._tickets = dict[int, VllmTicket]()
        self._stopping = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._engine: Any = None

    @property
    def load(self) -> EngineLoad:
        """How much there is to do."""
        begun = [ticket.begun for ticket in list(self._tickets.values())]
        return EngineLoad(begun.count(False), begun.count(True))

    def prepare(self, request: Request) -> PreparedRequest:
        """Read a request; may be called in any thread.

        Raises:
            SafeError: it cannot be answered as it is.
        """
        prepared = self._reader.prepare(request)
        check_can_decide(self.model, prepared.gates)
        return prepared

    # Running

    def start(self) -> VllmEngine:
        """Load the model, and begin to answer.

        Raises:
            SafeError: it cannot be served, or vLLM does not start.
        """
        self._thread.start()
        self._wait_for(self._made())
        return self

    async def _made(self) -> None:
        import psutil  # vLLM's own dependency
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        known = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
        if unknown := [name for name in self._arguments if name not in known]:
            raise SafeError(f"vLLM has no option `{unknown[0]}`", hint=nearest(unknown[0], known))
        memory = psutil.virtual_memory()
        share = memory_arguments(self._arguments, memory.available, memory.total)
        arguments = AsyncEngineArgs(disable_log_stats=True, **{**share, **self._arguments})
        try:
            with refusals():
                self._engine = AsyncLLM.from_engine_args(arguments)
        except RuntimeError as error:  # of a process of vLLM's, which has said why itself
            raise SafeError(
                "vLLM did not start; what it wrote above says why",
                hint="where memory is short: `--vllm kv_cache_memory_bytes=1000000000`",
            ) from error

    def submit(self, prepared: PreparedRequest, sink: Sink) -> VllmTicket:
        """Hand a request in, to be answered when there is room.

        Raises:
            StoppedError: the engine ends.
        """
        if self._stopping:
            raise StoppedError("the server is stopping", hint="ask again when it runs")
        if self._engine.errored:
            raise StoppedError("vLLM has stopped", hint="start the server again; its log says why")
        ticket = VllmTicket(next(self._numbers), prepared, sink)
        self._tickets[ticket.number] = ticket
        ticket.task = asyncio.run_coroutine_threadsafe(self._answer(ticket), self._loop)
        ticket.task.add_done_callback(lambda _: self._tickets.pop(ticket.number, None))
        return ticket

    def stop(self, wait: float = 0.0) -> None:
        """End, after what was submitted was answered or ``wait`` seconds have passed."""
        self._stopping = True
        end = time.monotonic() + wait
        while self._tickets and time.monotonic() < end:
            time.sleep(0.05)
        for ticket in list(self._tickets.values()):
            why = "the server stopped before the answer was whole"
            ticket.tell(Failed(StoppedError(why, hint="ask again")))
            ticket.cancel()
        if self._engine is not None:
            self._engine.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait_for(self, task: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(task, self._loop)
        return future.result()

    # Answering

    async def _answer(self, ticket: VllmTicket) -> None:
        """Answer one request, each of its answers by a request of vLLM's."""
        try:
            if AUTO not in ticket.request.gates.values():
                await ticket.tell_heard(self._engine)
            async with asyncio.TaskGroup() as group:
                for index in range(ticket.request.sampling.n):
                    group.create_task(self._one(ticket, index))
        except BaseExceptionGroup as found:
            ticket.tell(Failed(_first(found)))

    async def _one(self, ticket: VllmTicket, index: int) -> None:
        """One answer of a request, until it ends or nobody wants it."""
        asked = ticket.request
        answer = _Answer(ticket, index, self.model.tokenizer)
        outputs = self._engine.generate(
            self._prompt(ticket), sampling_params(asked, index), f"safe-{ticket.number}-{index}"
        )
        async with aclosing(outputs):
            async for output in outputs:
                ticket.begun = True
                await ticket.tell_heard(self._engine)
                (told,) = output.outputs
                answer.take(told.token_ids, told.logprobs, ended=told.finish_reason)
                if answer.finished or ticket.cancelled:
                    return

    def _prompt(self, ticket: VllmTicket) -> dict[str, Any]:
        """What vLLM is given of a request."""
        asked = ticket.request
        prompt: dict[str, Any] = {"prompt_token_ids": asked.batch["input_ids"][0].tolist()}
        given = dict[str, Any]()
        if asked.pictures:
            given["image"] = list(map(opened, asked.pictures))
        if asked.samples:
            own = {
                key: value
                for key, value in asked.batch.items()
                if key.partition("__")[0] in asked.samples
            }
            given[KIND] = PreparedSamples(own, ticket.decision)
            prompt["mm_processor_kwargs"] = {GATE: dict(asked.gates)}
        return {**prompt, "multi_modal_data": given} if given else prompt


class _Answer:
    """One answer that grows.

    Args:
        ticket: of its request.
        index: of the answer.
        tokenizer: the base's.
    """

    def __init__(self, ticket: VllmTicket, index: int, tokenizer: Any) -> None:
        asked = ticket.request
        self.ticket, self.index, self.tokenizer = ticket, index, tokenizer
        self.text = AnswerText(tokenizer, asked.ends, asked.sampling.stop)
        self.count, self.finished = 0, False

    def take(
        self, tokens: Sequence[int], logprobs: Sequence[Any] | None, *, ended: str | None
    ) -> None:
        """Tell what text comes of new tokens.

        Args:
            tokens: that vLLM chose.
            logprobs: of each and the likeliest at its place, by id; None where none are told.
            ended: why vLLM ends here; None where it goes on.
        """
        new, told = "", list[TokenLogprob]()
        for number, token in enumerate(tokens):
            new += self.text.add(token)
            self.count += 1
            if logprobs is not None and not (self.text.stopped and self._is_end(token)):
                told.append(self._logprob(token, logprobs[number]))
            if self.text.stopped:
                break
        reason: FinishReason | None = "stop" if self.text.stopped else None
        if reason is None and ended is not None:
            new += self.text.finish()
            reason = "stop" if self.text.stopped else "length"
        self.finished = reason is not None
        if new or told or self.finished:
            self.ticket.tell(Piece(self.index, new, tuple(told), reason, self.count))

    def _is_end(self, token: int) -> bool:
        return any(token == end[-1] for end in self.text.ends)

    def _logprob(self, token: int, known: Mapping[int, Any]) -> TokenLogprob:
        count = self.ticket.request.sampling.top_logprobs
        ranked = sorted(known.items(), key=lambda item: (item[1].rank, item[0]))[:count]
        top = tuple((one, self._text(one), float(found.logprob)) for one, found in ranked)
        return TokenLogprob(token, self._text(token), float(known[token].logprob), top)

    def _text(self, token: int) -> str:
        text: str = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text


def sampling_params(asked: PreparedRequest, index: int) -> Any:
    """How vLLM chooses the tokens of one answer.

    Args:
        asked: with nothing left open.
        index: of the answer, each of which has random numbers of its own.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    own = asked.sampling
    return SamplingParams(
        max_tokens=asked.max_tokens,
        temperature=own.temperature,
        top_p=own.top_p,
        top_k=own.top_k,
        frequency_penalty=own.frequency_penalty,
        presence_penalty=own.presence_penalty,
        repetition_penalty=own.repetition_penalty,
        logit_bias=dict(own.logit_bias) or None,
        seed=_seed(own, index),
        logprobs=own.top_logprobs if own.logprobs else None,
        stop_token_ids=[end[0] for end in asked.ends if len(end) == 1],
        ignore_eos=True,  # what ends an answer is among the ids above
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _seed(own: Sampling, index: int) -> int | None:
    if own.seed is None:
        return None
    made = hashlib.sha256(f"{own.seed}/{index}".encode()).digest()
    return int.from_bytes(made[:7], "little")


def _first(group: BaseExceptionGroup[BaseException]) -> Exception:
    """The first error of a group."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found if isinstance(found, Exception) else RuntimeError("the engine ended")
