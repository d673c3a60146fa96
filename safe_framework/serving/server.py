"""OpenAI's chat completions over HTTP, from any engine.

``POST /v1/chat/completions``, ``GET /v1/models``, ``/health`` and ``/metrics``. What is read from a
request is decoded in threads of its own, so that a large body holds nobody up. The log has numbers
and never what was said.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import attrs

from safe_framework.errors import (
    InjectionError,
    PluginError,
    SafeError,
    UnsupportedBaseError,
)
from safe_framework.serving.chat_requests import (
    ChatRequest,
    ServedModel,
    parse_json,
    read_request,
)
from safe_framework.serving.engine import (
    Engine,
    Event,
    Failed,
    Heard,
    Piece,
    Prepared,
    StoppedError,
    Ticket,
    TokenLogprob,
    TooLongError,
)
from safe_framework.serving.limits import Limits, RequestError
from safe_framework.serving.metrics import Metrics
from safe_framework.utils.optional_imports import require

_log = logging.getLogger("safe_framework.serving")
_READERS = 2
"""Threads that decode what requests bring."""
_LEFT = 499
"""How logs and counters call a request whose client left; nobody is sent it."""
_OURS = (PluginError, InjectionError, UnsupportedBaseError)
"""Errors that no request is to blame for."""
_NO_LIKELIER = -9999.0
"""What stands for a log-probability of minus infinity, which JSON has not."""


@attrs.frozen
class ServerOptions:
    """How a server behaves.

    Attributes:
        queue: requests that may wait, beyond those that are answered.
        timeout: seconds from a request to the end of its answer.
        upload_timeout: seconds that a body may take to arrive.
        api_key: that a request must bring; None for none.
        limits: of a request.
    """

    queue: int = 64
    timeout: float = 300.0
    upload_timeout: float = 30.0
    api_key: str | None = None
    limits: Limits = attrs.field(factory=Limits)


class Server:
    """One model behind HTTP.

    Args:
        engine: that answers.
        model: as requests name it.
        options: of the server.
        answering: answers that the engine decodes at a time.
    """

    def __init__(
        self, engine: Engine, model: ServedModel, options: ServerOptions, *, answering: int
    ) -> None:
        self.engine, self.model, self.options = engine, model, options
        self.room = options.queue + answering
        self.metrics = Metrics(engine)
        self._running = 0
        self._mean = 1.0  # seconds of an answer, for Retry-After
        self._stopping = False
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="safe-reader")

    def app(self) -> Any:
        """The ASGI application."""
        starlette = require("starlette.applications", "serve", "`safe serve` needs `starlette`")
        from starlette.routing import Route

        routes = [
            Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
            Route("/v1/models", self._guarded(self.models)),
            Route("/v1/models/{name:path}", self._guarded(self.models)),
            Route("/metrics", self._guarded(self.show_metrics)),
            Route("/health", self.health),
        ]
        handlers = {404: _as_error, 405: _as_error}
        return starlette.Starlette(
            routes=routes, exception_handlers=handlers, lifespan=self._lifespan
        )

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        yield
        self.stop_accepting()
        await asyncio.to_thread(self.engine.stop, self.options.timeout)
        self._readers.shutdown(wait=False, cancel_futures=True)

    def stop_accepting(self) -> None:
        """From here on, answer what runs and refuse what comes."""
        self._stopping = True

    # What needs no model

    async def health(self, request: Any) -> Any:
        """Whether requests are taken."""
        state = {"status": "stopping" if self._stopping else "ok", "engine": self.engine.name}
        return _json(state, 503 if self._stopping else 200)

    async def models(self, request: Any) -> Any:
        """The one model there is, and the modalities that it has."""
        name = request.path_params.get("name")
        entry = {
            "id": self.model.name,
            "object": "model",
            "created": 0,
            "owned_by": "safe-framework",
            "safe": {"sees": self.model.sees, "sampling_rates": dict(self.model.rates)},
        }
        if name is None:
            return _json({"object": "list", "data": [entry]})
        if name != self.model.name:
            raise RequestError(
                f"there is no model {name!r:.80}", status=404, code="model_not_found"
            )
        return _json(entry)

    async def show_metrics(self, request: Any) -> Any:
        """Counters for Prometheus."""
        from starlette.responses import Response

        content, kind = self.metrics.page()
        return Response(content, headers={"content-type": kind})

    def _guarded(self, handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A handler behind the API key, whose errors are in OpenAI's shape."""

        async def guarded(request: Any) -> Any:
            """The handler's response, or why there is none."""
            start = time.perf_counter()
            try:
                self._check_key(request)
                return await handler(request)
            except Exception as error:
                refused = as_request_error(error)
                if request.method == "POST":
                    self._note(refused.status, start)
                return self._refusal(refused)

        return guarded

    def _check_key(self, request: Any) -> None:
        key = self.options.api_key
        given = request.headers.get("authorization", "").encode("utf-8")
        if key is not None and not hmac.compare_digest(given, f"Bearer {key}".encode()):
            raise RequestError(
                "the API key is missing or wrong",
                hint="send `Authorization: Bearer KEY`",
                status=401,
                code="invalid_api_key",
            )

    # Chats

    async def chat(self, request: Any) -> Any:
        """Answer a conversation."""
        start = time.perf_counter()
        self._check_room()
        self._running += 1
        handed_on = False
        try:
            asked, prepared = await self._read(request)
            left = self.options.timeout - (time.perf_counter() - start)
            talk = _Talk(self, asked, prepared, start, start + max(left, 0.0))
            if asked.stream:
                response = self._streaming(talk)
                handed_on = True
                return response
            return await self._whole(talk, request)
        finally:
            if not handed_on:
                self._running -= 1

    def _check_room(self) -> None:
        if self._stopping:
            raise RequestError("the server is stopping", hint="ask again later", status=503)
        if self._running >= self.room:
            raise RequestError(
                f"{self._running} requests are being answered or wait, and no more are taken",
                hint="ask again later",
                status=429,
                code="queue_full",
            )

    def _refusal(self, error: RequestError) -> Any:
        headers = dict[str, str]()
        if error.status in (429, 503):  # after about as long as an answer takes
            headers["retry-after"] = str(max(1, min(60, math.ceil(self._mean))))
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        return _json(error.body, error.status, headers)

    async def _read(self, request: Any) -> tuple[ChatRequest, Prepared]:
        """A request's body, decoded, and as the engine takes it."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError("the body must be of type application/json", status=415)
        try:
            async with asyncio.timeout(self.options.upload_timeout):
                content = await self._content(request)
        except TimeoutError as error:
            raise RequestError("the body took too long to arrive", status=408) from error

        def read() -> tuple[ChatRequest, Prepared]:
            """What takes a while, in a thread of its own."""
            asked = read_request(parse_json(content), self.model, self.options.limits)
            return asked, self.engine.prepare(asked.request)

        return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    async def _content(self, request: Any) -> bytes:
        most = self.options.limits.body_bytes
        refusal = RequestError(f"the body has more than {most} bytes", hint="send less", status=413)
        said = request.headers.get("content-length", "")
        if said.isdigit() and int(said[:20]) > most:
            raise refusal
        found = bytearray()
        async for chunk in request.stream():
            found += chunk
            if len(found) > most:
                raise refusal
        return bytes(found)

    async def _whole(self, talk: _Talk, request: Any) -> Any:
        """The answer in one response; given up when the client leaves."""
        collecting = asyncio.ensure_future(talk.collect())
        leaving = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                self.metrics.left()
                raise RequestError("the client left", status=_LEFT)
            answers = collecting.result()
        finally:
            talk.cancel()
            for task in (collecting, leaving):
                task.cancel()
        self._note(200, talk.start, talk)
        return _json(talk.completion(answers))

    def _streaming(self, talk: _Talk) -> Any:
        from starlette.responses import StreamingResponse

        server = self

        class Streaming(StreamingResponse):
            """Server-sent events; a client that leaves ends it wherever it is."""

            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                """Send them, and give up what nobody waits for."""
                try:
                    await super().__call__(scope, receive, send)
                finally:
                    server._running -= 1
                    talk.cancel()
                    status = talk.status or _LEFT
                    if status == _LEFT:
                        server.metrics.left()
                    server._note(status, talk.start, talk)

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return Streaming(talk.events(), media_type="text/event-stream", headers=headers)

    def _note(self, status: int, start: float, talk: _Talk | None = None) -> None:
        """Count a request, and write a line of numbers."""
        seconds = time.perf_counter() - start
        if status == 200:
            self._mean += 0.2 * (seconds - self._mean)
        tokens = 0 if talk is None else talk.answer_tokens
        prompt = 0 if talk is None else talk.prepared.prompt_tokens
        self.metrics.ended(status, seconds, tokens)
        name = "-" if talk is None else talk.id
        _log.info("%s %d %.3f s, %d + %d tokens", name, status, seconds, prompt, tokens)


class _Talk:
    """One request on its way through the engine.

    Attributes:
        id: of the completion.
        prepared: as the engine takes it.
        start: when it came, by ``time.perf_counter``.
        status: how its stream ended; 0 while it has not.
    """

    def __init__(
        self, server: Server, asked: ChatRequest, prepared: Prepared, start: float, end: float
    ) -> None:
        self.server, self.asked, self.prepared = server, asked, prepared
        self.id, self.start, self._end = f"chatcmpl-{uuid.uuid4().hex}", start, end
        self._created, self.status = int(time.time()), 0
        self._gates: Mapping[str, float] = {}
        self._counts = dict[int, int]()
        self._ticket: Ticket | None = None

    @property
    def answer_tokens(self) -> int:
        """Of all answers so far."""
        return sum(self._counts.values())

    def cancel(self) -> None:
        """Have it decoded no further."""
        if self._ticket is not None:
            self._ticket.cancel()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Pieces of the answers as they come, until each has ended.

        Raises:
            RequestError: it takes too long.
            Exception: what the engine failed with.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def sink(event: Event) -> None:
            """Hand an event to the loop, which may have ended."""
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:
                self.cancel()

        self._ticket = self.server.engine.submit(self.prepared, sink)
        unfinished, first = set(range(self.asked.request.sampling.n)), True
        while unfinished:
            try:
                async with asyncio.timeout(self._end - time.perf_counter()):
                    event = await events.get()
            except TimeoutError as error:
                raise RequestError(
                    f"the answer took longer than {self.server.options.timeout:g} seconds",
                    hint="ask for fewer tokens",
                    status=504,
                    code="timeout",
                ) from error
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Heard):
                self._gates = event.gates
                samples = self.prepared.samples
                self.server.metrics.begun(self.prepared.prompt_tokens, samples, event.gates)
                continue
            if first:
                self.server.metrics.first_token(time.perf_counter() - self.start)
                first = False
            self._counts[event.index] = event.count
            if event.finish is not None:
                unfinished.discard(event.index)
            yield event

    async def collect(self) -> list[list[Piece]]:
        """The pieces of each answer."""
        found: list[list[Piece]] = [[] for _ in range(self.asked.request.sampling.n)]
        async for piece in self.pieces():
            found[piece.index].append(piece)
        return found

    def completion(self, answers: list[list[Piece]]) -> dict[str, Any]:
        """A ``chat.completion``."""
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": "".join(piece.text for piece in pieces),
                    "refusal": None,
                },
                "logprobs": self._logprobs([one for piece in pieces for one in piece.tokens]),
                "finish_reason": pieces[-1].finish,
            }
            for index, pieces in enumerate(answers)
        ]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": self._usage(),
            "safe": self._safe(),
        }

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events, the last of which is ``[DONE]`` or an error."""
        try:
            async for chunk in self.chunks():
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"
            self.status = 200
        except Exception as error:  # the status was sent long ago
            refused = as_request_error(error)
            self.status = refused.status
            yield f"data: {json.dumps(refused.body)}\n\n"

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as ``chat.completion.chunk``s."""
        for index in range(self.asked.request.sampling.n):
            yield self._chunk(index, {"role": "assistant", "content": ""}, None, None)
        async for piece in self.pieces():
            delta = {"content": piece.text} if piece.text or piece.tokens else {}
            logprobs = self._logprobs(piece.tokens) if piece.tokens else None
            yield self._chunk(piece.index, delta, logprobs, piece.finish)
        if self.asked.usage:
            yield {
                **self._head("chat.completion.chunk"),
                "choices": [],
                "usage": self._usage(),
                "safe": self._safe(),
            }

    def _chunk(
        self, index: int, delta: Mapping[str, Any], logprobs: Any, finish: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if finish is not None:
            chunk["safe"] = self._safe()
        return {**chunk, "usage": None} if self.asked.usage else chunk

    def _head(self, kind: str) -> dict[str, Any]:
        name = self.server.model.name
        return {"id": self.id, "object": kind, "created": self._created, "model": name}

    def _usage(self) -> dict[str, int]:
        prompt, answer = self.prepared.prompt_tokens, self.answer_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        }

    def _safe(self) -> dict[str, Any]:
        """What acted: the strength of each modality that has a sample, 0 where it was off."""
        return {"gates": dict(self._gates)}

    def _logprobs(self, tokens: Any) -> dict[str, Any] | None:
        if not self.asked.request.sampling.logprobs:
            return None
        return {"content": [_with_logprob(one) for one in tokens], "refusal": None}


def _with_logprob(token: TokenLogprob) -> dict[str, Any]:
    top = [_entry(text, value) for _, text, value in token.top]
    return {**_entry(token.text, token.logprob), "top_logprobs": top}


def _entry(text: str, value: float) -> dict[str, Any]:
    whole = "\N{REPLACEMENT CHARACTER}" not in text  # else a part of a letter
    return {
        "token": text,
        "logprob": value if math.isfinite(value) else _NO_LIKELIER,
        "bytes": list(text.encode("utf-8")) if whole else None,
    }


async def _disconnected(request: Any) -> None:
    """Wait until the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def as_request_error(error: Exception) -> RequestError:
    """What a client is told of an error: its own mistakes whole, and of ours that there was one."""
    from starlette.requests import ClientDisconnect

    if isinstance(error, RequestError):
        return error
    if isinstance(error, ClientDisconnect):
        return RequestError("the client left", status=_LEFT)
    if isinstance(error, StoppedError):
        return RequestError(error.message, hint=error.hint, status=503)
    if isinstance(error, SafeError) and not isinstance(error, _OURS):
        code = "context_length_exceeded" if isinstance(error, TooLongError) else ""
        return RequestError(error.message, hint=error.hint, code=code, param="messages")
    _log.error("%s in the server", type(error).__name__, exc_info=_without_message(error))
    return RequestError("something went wrong in the server", status=500, code="internal_error")


def _without_message(error: Exception) -> Any:
    """Where an error was raised, without words that may be a user's."""
    return RuntimeError, RuntimeError(type(error).__name__), error.__traceback__


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Any:
    from starlette.responses import Response

    text = json.dumps(content)  # in ASCII, so that half a letter is no error either
    return Response(text, status, headers, media_type="application/json")


async def _as_error(request: Any, error: Any) -> Any:
    """The framework's own refusals, in the same shape."""
    what = "there is no such address" if error.status_code == 404 else "there is no such method"
    return _json(RequestError(what, status=error.status_code).body, error.status_code)
