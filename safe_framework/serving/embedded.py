"""The engine ``transformers``: one thread that owns the model, and answers in batches.

Rows join and leave between steps. Those without a sample are decoded in batches of their own, by
the very calls that the bare base would make: no modality is on in them, and which of them share a
batch does not depend on rows that hear something. No prompt is kept for another request, so there
is no cache by which one could see another's sample.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.decoding import (
    DecodingBatch,
    ReadPrompt,
    Shape,
    decodes_in_steps,
    read_prompt,
)
from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import AUTO, Strength, check_decidable, relevance_samples
from safe_framework.core.turn_end import TurnEnd
from safe_framework.data.samples import as_sample
from safe_framework.errors import SafeError
from safe_framework.interfaces.samples import together
from safe_framework.serving.answer_text import AnswerText
from safe_framework.serving.engine import (
    Event,
    Failed,
    FinishReason,
    Heard,
    Message,
    Piece,
    Request,
    Sampling,
    Sink,
    StoppedError,
    TokenLogprob,
    TooLongError,
)
from safe_framework.serving.sampling import TokenChooser, check_settings, with_defaults

_log = logging.getLogger("safe_framework.serving")

_PLAIN: Shape = ()


@attrs.frozen(eq=False)
class PreparedRequest:
    """A request as the model takes it.

    Attributes:
        batch: of one row, on the CPU.
        gates: by modality, of those that have a sample.
        sampling: with nothing left open.
        prompt_tokens: of the prompt.
        max_tokens: of an answer.
        samples: how many samples of each modality the row has whose gate is not 0.
        ends: ids that end an answer, each a sequence.
        pictures: for the base, in their order, as they came.
    """

    batch: Mapping[str, Any]
    gates: Mapping[str, Strength]
    sampling: Sampling
    prompt_tokens: int
    max_tokens: int
    samples: Mapping[str, int]
    ends: Sequence[Sequence[int]]
    pictures: Sequence[Any] = ()


@attrs.frozen
class EngineLoad:
    """How much an engine has to do.

    Attributes:
        waiting: requests whose prompts were not read yet.
        running: answers that are being decoded.
    """

    waiting: int
    running: int


@attrs.define(eq=False)
class RequestTicket:
    """A request in the engine.

    Attributes:
        number: of the request, in the order in which they came.
        request: that is answered.
        sink: is told what becomes of it.
        cancelled: whether nobody wants it any more.
    """

    number: int
    request: PreparedRequest
    sink: Sink
    cancelled: bool = False

    def cancel(self) -> None:
        """Give it up: it is decoded no further, and its sink is told no more."""
        self.cancelled = True

    def tell(self, event: Event) -> None:
        """Pass an event on, unless nobody wants it."""
        if not self.cancelled:
            self.sink(event)


class Answer:
    """One answer that grows.

    Args:
        ticket: of its request.
        index: of the answer.
        tokenizer: the base's.
    """

    def __init__(self, ticket: RequestTicket, index: int, tokenizer: Any) -> None:
        asked = ticket.request
        self.ticket, self.index = ticket, index
        self.text = AnswerText(tokenizer, asked.ends, asked.sampling.stop)
        prompt = asked.batch["input_ids"][0].tolist()
        self.chooser = TokenChooser(asked.sampling, prompt, index, tokenizer)
        self.last, self.count, self.finished = -1, 0, False
        self._untold: list[TokenLogprob] = []

    def take(self, logits: Tensor, likeliest: int | None = None) -> None:
        """Choose the next token, and tell what text comes of it.

        Args:
            logits: of the model, (vocabulary,), float32.
            likeliest: the token of the highest of them, where that is known.
        """
        self.last = self.chooser.choose(logits, likeliest)
        self.count += 1
        new = self.text.add(self.last)
        asked = self.ticket.request
        if asked.sampling.logprobs and not (self.text.stopped and self._is_end(self.last)):
            self._untold.append(self.chooser.logprob(logits, self.last))
        reason: FinishReason | None = "stop" if self.text.stopped else None
        if reason is None and self.count >= asked.max_tokens:
            new += self.text.finish()
            reason = "stop" if self.text.stopped else "length"
        self.finished = reason is not None
        if new or self._untold or self.finished:
            told, self._untold = tuple(self._untold), []
            self.ticket.tell(Piece(self.index, new, told, reason, self.count))

    def _is_end(self, token: int) -> bool:
        return any(token == end[-1] for end in self.text.ends)


Journal = list[tuple[Any, ...]]
"""What was done with the rows that carry no sample, in order: ``("join", number)`` of a request's
ticket, ``("keep", rows)`` and ``("step", tokens)``. Who does the same with the bare base gets the
same bits."""


class EmbeddedEngine:
    """Answers requests by a model in this process.

    Args:
        model: that answers; put into evaluation mode.
        max_batch: rows that are decoded together: so many without samples, and so many with.
        max_tokens: of an answer.
        journal: where to write what is done with rows that carry no sample; None for nowhere.

    Attributes:
        rows_in_step: is told how many rows each step had.

    Raises:
        SafeError: the base's own generation settings ask for what is not done here.
    """

    name = "transformers"

    def __init__(
        self,
        model: SafeModel,
        *,
        max_batch: int = 8,
        max_tokens: int = 1024,
        journal: Journal | None = None,
    ) -> None:
        check_settings(model.base)
        self.model, self.max_batch, self.max_tokens = model.eval(), max_batch, max_tokens
        self.rows_in_step: Callable[[int], None] = lambda rows: None
        self._journal = journal
        self._in_steps = decodes_in_steps(model.base)
        self._tokenizing = threading.Lock()  # a fast tokenizer refuses two threads at once
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._waiting: deque[RequestTicket] = deque()
        self._groups: dict[Shape, tuple[DecodingBatch, list[Answer]]] = {}
        self._alone = 0  # answers that are decoded by themselves
        self._stopping: float | None = None
        self._thread: threading.Thread | None = None

    # Requests

    @property
    def load(self) -> EngineLoad:
        """How much there is to do."""
        running = sum(len(answers) for _, answers in list(self._groups.values()))
        return EngineLoad(len(self._waiting), running + self._alone)

    @property
    def context(self) -> int | None:
        """How many tokens a prompt and its answer may have; None where the base does not say."""
        config: Any = self.model.base.config
        found = getattr(config.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None

    def prepare(self, request: Request) -> PreparedRequest:
        """Read a request; may be called in any thread.

        Raises:
            SampleError: a sample cannot be used, or its modality is not attached.
            SafeError: the conversation is none that the base can be asked.
            TooLongError: it is longer than the base takes.
        """
        gates = self._gates(request)
        messages = [_without(message, gates) for message in request.messages]
        self._write_down(messages)
        with self._tokenizing:
            batch, end = self._batch(messages, as_question=request.as_question)
        length = batch["input_ids"].shape[1]
        sampling = with_defaults(request.sampling, self.model.base)
        samples = _samples(messages, self.model.modalities.keys())
        for name in samples:
            if gates[name] == AUTO:
                check_decidable(self.model.modality(name))
        known = _ids(getattr(self.model.base, "generation_config", None))
        ends = [(one,) for one in known] + ([] if end is None else [end.ids])
        return PreparedRequest(
            {key: value for key, value in batch.items() if value is not None},
            {name: gates[name] for name in samples},
            sampling,
            length,
            self._longest(length, sampling.max_tokens),
            samples,
            ends,
            _pictures(messages, self.model.modalities.keys()),
        )

    def _write_down(self, messages: Sequence[Message]) -> None:
        """Transcribe samples while others may use the tokenizer: it takes as long as many texts."""
        processor = self.model.processor
        for message in messages if processor.transcripts else ():
            parts = message["content"]
            for part in () if isinstance(parts, str) else parts:
                name = part["type"]
                if name in processor.transcripts and part.get(name) is not None:
                    with suppress(SafeError):  # which the processor raises, with its place
                        sample = as_sample(name, part[name], processor.encoders[name])
                        processor.transcripts[name].words(sample)

    def _longest(self, prompt: int, asked: int | None) -> int:
        context = None if decodes_separately(self.model.base) else self.context
        room = self.max_tokens if context is None else min(self.max_tokens, context - prompt)
        if room < 1:
            raise TooLongError(
                f"the prompt has {prompt} tokens, and the base reads {context} with the answer",
                hint="send a shorter conversation",
            )
        if asked is not None and asked > room:
            raise TooLongError(
                f"`max_tokens` is {asked}, and {room} are possible behind a prompt of {prompt}",
                hint=f"ask for at most {room}",
            )
        return room if asked is None else asked

    def _gates(self, request: Request) -> dict[str, Strength]:
        """The strength of every modality in this request."""
        own: dict[str, Strength] = dict(self.model.gates)
        given = request.gate
        if given is None:
            return own
        if not isinstance(given, Mapping):
            return dict.fromkeys(own, given)
        for name in given:
            self.model.modality(name)  # or an error that names those there are
        return {**own, **given}

    def _batch(self, messages: Sequence[Message], *, as_question: bool) -> tuple[Any, Any]:
        """A batch of one conversation, and what ends a turn of it."""
        processor = self.model.processor
        if processor.chat is not None and not as_question:
            way = "add_generation_prompt"
            if messages[-1]["role"] == "assistant":
                way = "continue_final_message"
            return processor.chat_batch([messages], None, {way: True}), TurnEnd.of(self.model)
        if len(messages) != 1 or messages[0]["role"] != "user":
            raise SafeError(
                "the base has no chat template, so that it answers one user's message alone",
                hint="send one message",
            )
        asked = _as_question(messages[0], self.model.modalities.keys())
        end = TurnEnd.of(self.model, [processor.prompt(asked["question"][0])])
        return processor(**asked), end

    def submit(self, prepared: PreparedRequest, sink: Sink) -> RequestTicket:
        """Hand a request in, to be answered when there is room.

        Raises:
            StoppedError: the engine ends.
        """
        with self._changed:
            if self._stopping is not None:
                raise StoppedError("the server is stopping", hint="ask again when it runs")
            ticket = RequestTicket(next(self._numbers), prepared, sink)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    # Running

    def start(self) -> EmbeddedEngine:
        """Begin to answer, in a thread of the engine's own."""
        self._thread = threading.Thread(target=self._run, name="safe-engine", daemon=True)
        self._thread.start()
        return self

    def stop(self, wait: float = 0.0) -> None:
        """End, after what was submitted was answered or ``wait`` seconds have passed."""
        with self._changed:
            self._stopping = time.monotonic() + wait
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def run_until(self, done: Callable[[], bool] = lambda: False) -> None:
        """Answer in this thread what was submitted, until ``done`` says so or all is answered."""
        while (self._waiting or self._groups) and not done():
            self._turn()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._groups or self._stopping is not None):
                    self._changed.wait()
                idle = not (self._waiting or self._groups)
                late = self._stopping is not None and time.monotonic() >= self._stopping
            if self._stopping is not None and (idle or late):
                self._give_up(
                    StoppedError("the server stopped before the answer was whole", hint="ask again")
                )
                return
            try:
                self._turn()
            except Exception as error:  # nobody's own: all that run fail, and others are answered
                self._note_error(error)
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Fail all requests that there are."""
        running = [answer.ticket for _, answers in self._groups.values() for answer in answers]
        with self._changed:
            tickets = {*self._waiting, *running}
            self._waiting.clear()
            self._groups.clear()
        for ticket in tickets:
            ticket.tell(Failed(error))
            ticket.cancel()

    def _turn(self) -> None:
        """Let rows leave, read what there is room for, and take a step of each batch."""
        with self._changed:
            wanted = [ticket for ticket in self._waiting if not ticket.cancelled]
            self._waiting = deque(wanted)
        for shape in list(self._groups):
            self._let_leave(shape)
        for with_samples in (False, True):
            self._admit(with_samples)
        for shape in list(self._groups):
            self._step(shape)
            self._let_leave(shape)

    # Joining

    def _admit(self, with_samples: bool) -> None:
        """Read prompts as long as there is room: one of them, where others wait for their step."""
        running = self._rows(with_samples)
        busy = running > 0
        for ticket in self._first_waiting(with_samples):
            rows = ticket.request.sampling.n
            if running and running + rows > self.max_batch:
                return
            with self._changed:
                self._waiting.remove(ticket)
            if not ticket.cancelled:
                self._read(ticket)
                running = self._rows(with_samples)
                if busy:
                    return

    def _rows(self, with_samples: bool) -> int:
        return sum(
            len(answers)
            for shape, (_, answers) in self._groups.items()
            if (shape != _PLAIN) is with_samples
        )

    def _first_waiting(self, with_samples: bool) -> list[RequestTicket]:
        with self._changed:
            all_ = list(self._waiting)
        return [one for one in all_ if bool(one.request.samples) is with_samples]

    def _read(self, ticket: RequestTicket) -> None:
        """Read a prompt, and let its answers join those of its shape."""
        asked = ticket.request
        answers = [Answer(ticket, n, self.model.tokenizer) for n in range(asked.sampling.n)]
        try:
            if not self._in_steps:
                self._answer_alone(ticket, answers)
                return
            batch = self._on_device(asked.batch)
            gates = decided(self.model, batch, asked.gates)
            if not any(gates.values()) and asked.samples:  # its head has closed all that it has
                self._put_back(ticket, attrs.evolve(asked, gates=gates, samples={}))
                return
            prompt = read_prompt(self.model, batch, gates)
            if not prompt.joins:
                self._in_steps = self._in_steps and bool(asked.batch.keys() & _PICTURES)
                self._answer_alone(ticket, answers)
                return
            ticket.tell(Heard(_strengths(gates, prompt.modalities)))
            for answer in answers:
                answer.take(prompt.logits)
            self._join(prompt, [answer for answer in answers if not answer.finished])
        except Exception as error:  # one request's, and no other's
            self._fail([ticket], error)

    def _put_back(self, ticket: RequestTicket, request: PreparedRequest) -> None:
        """Let a request be answered among those without a sample, before them all."""
        ticket.request = request
        with self._changed:
            self._waiting.appendleft(ticket)

    def _join(self, prompt: ReadPrompt, answers: Sequence[Answer]) -> None:
        if not answers:
            return
        known = self._groups.get(prompt.shape)
        batch, others = known or (DecodingBatch(self.model), list[Answer]())
        batch.join([prompt] * len(answers))
        others += answers
        self._groups[prompt.shape] = batch, others
        if prompt.shape == _PLAIN:
            self._note(*(("join", answer.ticket.number) for answer in answers))

    def _on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        device = self.model.device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    # Stepping

    def _step(self, shape: Shape) -> None:
        """Feed the newest token of each row, and choose the next."""
        if shape not in self._groups:
            return
        batch, answers = self._groups[shape]
        tokens = [answer.last for answer in answers]
        try:
            logits = batch.step(tokens)
        except Exception as error:  # those of this batch cannot go on; others can
            del self._groups[shape]
            self._fail([answer.ticket for answer in answers], error)
            return
        if shape == _PLAIN:
            self._note(("step", tuple(tokens)))
        self.rows_in_step(len(answers))
        likeliest = logits.argmax(-1).tolist()
        for answer, own, token in zip(answers, logits, likeliest, strict=True):
            try:
                answer.take(own, token)
            except Exception as error:  # its text or its sink; the row leaves
                self._fail([answer.ticket], error)

    def _let_leave(self, shape: Shape) -> None:
        if shape not in self._groups:
            return
        batch, answers = self._groups[shape]
        kept = [
            row for row, one in enumerate(answers) if not (one.finished or one.ticket.cancelled)
        ]
        if len(kept) == len(answers):
            return
        if shape == _PLAIN:
            self._note(("keep", tuple(kept)))
        if not kept:
            del self._groups[shape]
            return
        batch.keep(kept)
        answers[:] = [answers[row] for row in kept]

    def _note(self, *entries: tuple[Any, ...]) -> None:
        if self._journal is not None:
            self._journal.extend(entries)

    def _fail(self, tickets: Sequence[RequestTicket], error: Exception) -> None:
        """Tell those who wait, and the log."""
        self._note_error(error)
        for ticket in {id(one): one for one in tickets}.values():
            ticket.tell(Failed(error))
            ticket.cancel()

    @staticmethod
    def _note_error(error: Exception) -> None:
        """Log an error that is ours: where it was raised, but not over what."""
        if not isinstance(error, SafeError):
            frames = traceback.extract_tb(error.__traceback__)[-4:]
            at = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
            _log.error("%s while answering, at %s", type(error).__name__, at)

    # Bases whose rows cannot share a cache

    def _answer_alone(self, ticket: RequestTicket, answers: Sequence[Answer]) -> None:
        """Answer by the base's own ``generate``, one answer after the other."""
        asked = ticket.request
        batch = self._on_device(asked.batch)
        gates = decided(self.model, batch, asked.gates)
        _, call = self.model._prepare((), batch, gates)
        ticket.tell(Heard(_strengths(gates, call.modalities)))
        self._alone = len(answers)
        try:
            for answer in answers:
                _generate(self.model, batch, gates, answer)
        finally:
            self._alone = 0


def _generate(
    model: SafeModel, batch: Mapping[str, Any], gates: Mapping[str, Any], answer: Answer
) -> None:
    """Let ``generate`` run, with the tokens that ``answer`` chooses."""
    from transformers import LogitsProcessorList, StoppingCriteriaList

    def choose(ids: Tensor, scores: Tensor) -> Tensor:
        """Scores by which the chosen token is the likeliest."""
        if not answer.finished:
            answer.take(scores[0].float())
        return torch.full_like(scores, -torch.inf).index_fill(
            1, torch.tensor([answer.last], device=scores.device), 0.0
        )

    def ended(ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Whether the row is whole, or nobody wants it."""
        over = answer.finished or answer.ticket.cancelled
        return torch.full((len(ids),), over, device=ids.device, dtype=torch.bool)

    processors: Any = [choose]
    criteria: Any = [ended]
    model.generate(
        **batch, gate=gates, do_sample=False, max_new_tokens=answer.ticket.request.max_tokens,
        eos_token_id=None, logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList(criteria),
    )  # fmt: skip


_PICTURES = {"pixel_values", "pixel_values_videos"}


def _without(message: Message, gates: Mapping[str, Strength]) -> Message:
    """A message without samples whose gate is 0: they are as good as absent."""
    parts = message.get("content")
    if isinstance(parts, str):
        return message
    kept = [part for part in parts or () if gates.get(part["type"], 1) != 0]
    return {**message, "content": kept}


def _samples(messages: Sequence[Message], names: Any) -> dict[str, int]:
    """How many samples the messages have of each modality that they have some of."""
    kinds = [
        part["type"]
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    ]
    return {name: kinds.count(name) for name in names if name in kinds}


def _pictures(messages: Sequence[Message], names: Any) -> list[Any]:
    """The pictures for the base that the messages have, in their order."""
    return [
        next(part[key] for key in ("image", "path", "url") if part.get(key) is not None)
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image" and "image" not in names
    ]


def _as_question(message: Message, names: Any) -> dict[str, Any]:
    """One message as the arguments of a processor: its words as a question."""
    parts = message["content"]
    if isinstance(parts, str):
        return {"question": [parts]}
    words = "".join(part["text"] for part in parts if part["type"] == "text")
    held = {n: [part[n] for part in parts if part["type"] == n] for n in (*names, "image")}
    images = {"images": [held.pop("image")]} if held.get("image") else {}
    samples = {name: [together(list(values))] for name, values in held.items() if values}
    return {"question": [words], **samples, **images}


def decided(
    model: SafeModel, batch: Mapping[str, Any], gates: Mapping[str, Strength]
) -> dict[str, float]:
    """Gates as numbers: what is left to a relevance head is 1 or 0, as it opens or not.

    Args:
        model: that answers.
        batch: of one row, on the model's device.
        gates: by modality, of those that have a sample.
    """
    open_ = {name: model.modality(name) for name, value in gates.items() if value == AUTO}
    found = {name: float(value) for name, value in gates.items() if value != AUTO}
    heads = {name: one.relevance for name, one in open_.items() if one.relevance is not None}
    if not heads:
        return found
    for name, head in heads.items():
        read = model.prompt_states(batch, (head.layer,), head.columns)[head.layer]
        pooled = relevance_samples(model, name, batch) if head.pooled else None
        score = head(read, pooled)
        found[name] = float(head.opens(score)[0])
    return found


def _strengths(gates: Mapping[str, float], active: Sequence[Any]) -> dict[str, float]:
    """The strength at which each modality with a sample acts; 0 where it is off."""
    found = {name: 0.0 for name in gates}
    return found | {one.name: float(one.gates[0]) for one in active}


def _ids(settings: Any) -> list[int]:
    ends = getattr(settings, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
