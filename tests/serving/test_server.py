"""OpenAI's chat completions over HTTP: what is served, and how each refusal says why."""

from __future__ import annotations

import base64
import http.client
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from PIL import Image

from safe_framework.serving.chat_requests import read_request
from safe_framework.serving.limits import Limits, RequestError
from safe_framework.serving.serve import served_model
from safe_framework.serving.server import ServerOptions
from tests.serving.hearing import answered, asking, hearing_model, serving, tone, wav
from tests.serving.mangled import MANGLERS, mangled
from tests.support.levels import LevelEncoder
from tests.support.toys import ToyFusion, ToyProjector

LIMITS = Limits(body_bytes=200_000, audio_seconds=1.0, pixels=10_000, samples=3, answers=4)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a server."""
    options = ServerOptions(limits=LIMITS)
    with serving(hearing_model(), options, max_tokens=32) as (address, _):
        yield address


def ask(url: str, body: Any, headers: Any = None, path: str = "/v1/chat/completions") -> Any:
    """Status, headers and body of an answer to a POST."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {"content-type": "application/json", **(headers or {})}
    connection.request("POST", path, content, kind)
    response = connection.getresponse()
    found = response.status, response.headers, json.loads(response.read())
    connection.close()
    return found


def body(words: Any = "w5 w6", **fields: Any) -> dict[str, Any]:
    """A request of one message."""
    message = {"role": "user", "content": words}
    return {"model": "toy", "messages": [message], "max_tokens": 6, **fields}


def audio(data: str | None = None, kind: str = "wav") -> dict[str, Any]:
    """A part with sound."""
    return {"type": "input_audio", "input_audio": {"data": data or wav(), "format": kind}}


def text(words: str = "w5") -> dict[str, Any]:
    """A part with words."""
    return {"type": "text", "text": words}


def npy(values: Any) -> str:
    """An array's file in base64."""
    file = io.BytesIO()
    np.save(file, values)
    return base64.b64encode(file.getvalue()).decode()


def png(width: int, height: int) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# The official client


def test_the_official_client_works_unchanged(url: str) -> None:
    """Law: OpenAI's own client chats, streams, and reads usage, logprobs, choices and models."""
    client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").id == "toy"
    asked: Any = {"model": "toy", "max_tokens": 6, "logprobs": True, "top_logprobs": 2, "n": 2}
    asked["logit_bias"] = {"1": -100, "10": -100}  # the ends of a text and of a turn
    asked["messages"] = [{"role": "user", "content": [audio(), text("w5 w6")]}]
    whole = client.chat.completions.create(**asked, extra_body={"gate": {"audio": 0.5}})
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.completion_tokens == 2 * 6
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12
    first = whole.choices[0].logprobs.content[0]
    assert first.top_logprobs[0].logprob == pytest.approx(first.logprob)
    assert bytes(first.bytes).decode() == first.token
    assert whole.model_extra["safe"] == {"gates": {"audio": 0.5}}
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}, extra_body={"gate": 0.5}
    )
    chunks = list(stream)
    assert chunks[-1].usage == whole.usage
    for index, choice in enumerate(whole.choices):
        own = [one.choices[0] for one in chunks if one.choices and one.choices[0].index == index]
        assert "".join(one.delta.content or "" for one in own) == choice.message.content
        assert own[-1].finish_reason == choice.finish_reason
        assert [t for one in own if one.logprobs for t in one.logprobs.content] == (
            choice.logprobs.content
        )
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.chat.completions.create(model="other", messages=asked["messages"])
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            **asked, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert refused.value.param == "tools"
    client.close()


def test_what_is_sent_reaches_the_model(url: str) -> None:
    """Law: each kind of sound gives the engine's answer to it, and a sense its own array."""
    model = hearing_model()
    silent = ask(url, body("w5 w6"))[2]["choices"][0]["message"]["content"]
    assert silent == answered(model, asking("w5 w6", max_tokens=6))[0].text[0]
    answers = {silent}
    for kind in ("wav", "flac", "mp3", "ogg"):
        data = wav(3, 0.5, kind.upper())
        status, _, found = ask(url, body([audio(data, kind), text("w5 w6")]))
        assert (status, found["safe"]) == (200, {"gates": {"audio": 1.0}})
        answers.add(found["choices"][0]["message"]["content"])
    assert len(answers) >= 3
    part = {"type": "safe_sample", "modality": "touch", "format": "npy"}
    part["data"] = npy(np.full((3, 4), 0.7, dtype=np.float32))
    status, _, found = ask(url, body([part, text("w5 w6")]))
    assert (status, found["safe"]) == (200, {"gates": {"touch": 1.0}})
    assert found["choices"][0]["message"]["content"] not in answers
    part["data"] = npy(np.zeros(7, dtype=np.float32))
    assert "shape (7,)" in ask(url, body([part, text()]))[2]["error"]["message"]
    off = ask(url, body([audio(), text("w5 w6")], gate=0))[2]
    assert off["choices"][0]["message"]["content"] == silent
    assert off["safe"] == {"gates": {}}


# Refusals

BAD: list[tuple[Any, int, str]] = [
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0]"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "path": "/etc/passwd"}]}, 400,
     "messages[0].path"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "<audio>"}]}, 200, ""),
    ({"model": None}, 400, "model"),
    ({"model": "a\ud800"}, 400, "model"),
    ({"temperature": 3}, 400, "temperature"),
    ({"temperature": True}, 400, "temperature"),
    ({"temperature": 10**400}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"n": 5}, 400, "n"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": 10_000}, 400, "messages"),
    ({"max_completion_tokens": 5}, 400, "max_tokens"),
    ({"top_logprobs": 3}, 400, "top_logprobs"),
    ({"logit_bias": {"40": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"\u0661": 1}}, 400, "logit_bias"),
    ({"stop": [""]}, 400, "stop"),
    ({"seed": 2**64}, 400, "seed"),
    ({"gate": 2}, 400, "gate"),
    ({"gate": {"smell": 1}}, 400, "gate"),
    ({"stream": 1}, 400, "stream"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"functions": []}, 400, "functions"),
]  # fmt: skip
PARTS: list[tuple[Any, int, str]] = [
    ({"type": "audio", "path": "/etc/passwd"}, 400, "content[0].type"),
    (audio(kind="m4a"), 400, "is of format 'm4a'"),
    (audio("####"), 400, "is no base64"),
    (audio(base64.b64encode(b"RIFF").decode()), 400, "is no wav file"),
    (audio(wav(seconds=2.0)), 413, "longer than 1 seconds"),
    (audio(wav(seconds=2.0, kind="FLAC"), "flac"), 413, "longer than 1 seconds"),
    (audio(wav(seconds=2.0, kind="OGG"), "ogg"), 413, "longer than 1 seconds"),
    ({**audio(), "modality": "touch"}, 400, "takes no sound"),
    ({"type": "image_url", "image_url": {"url": png(10, 10)}}, 400, "takes no pictures"),
    ({"type": "safe_sample", "data": npy(np.zeros(3))}, 400, "modality"),
    ({"type": "safe_sample", "modality": "touch", "data": npy(np.zeros(3)), "format": "pkl"}, 400,
     "format"),
    ({"type": "safe_sample", "modality": "touch", "format": "npy",
      "data": npy(np.array([{}], dtype=object))}, 400, "array of numbers"),
    ({"type": "safe_sample", "modality": "touch", "format": "npy",
      "data": base64.b64encode(base64.b64decode(npy(np.zeros(3))).replace(
          b"(3,)", b"(9**9,)"[:4])).decode()}, 400, "array of numbers"),
    ({"type": "safe_sample", "modality": "touch", "format": "png",
      "data": png(200, 200).partition(",")[2]}, 413, "pixels"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "param"), BAD, ids=lambda one: str(one)[:30])
def test_a_field_that_is_wrong_is_named(url: str, fields: Any, status: int, param: str) -> None:
    """Law: a body with one mistake is refused, in OpenAI's shape, by the name of its field."""
    found, _, told = ask(url, {**body(), **fields})
    assert found == status
    if status != 200:
        assert told["error"]["param"] == param
        assert told["error"]["message"]
        assert told["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("part", "status", "reason"), PARTS, ids=lambda one: str(one)[:40])
def test_a_part_that_is_wrong_is_refused(url: str, part: Any, status: int, reason: str) -> None:
    """Law: a sample that cannot be used, or costs too much, is refused with its reason."""
    found, _, told = ask(url, body([part, text()]))
    assert (found, reason in told["error"]["message"]) == (status, True), told


def test_no_file_and_no_address_is_read(url: str, tmp_path: Any) -> None:
    """Law: paths, file addresses and hosts that were not allowed are refused unread."""
    with serving(seeing_model(), ServerOptions(limits=LIMITS)) as (address, _):
        for place in (
            "/etc/passwd",
            "file:///etc/passwd",
            "http://127.0.0.1:1/a.png",
            "x",
            "http://[",
            "data:text/plain;base64,aaaa",
            "data:image/png;base64,####",
        ):
            part = {"type": "image_url", "image_url": {"url": place}}
            status, _, told = ask(address, body([part, text()]))
            assert status == 400, told
            assert "root:" not in json.dumps(told)
        part = {"type": "image_url", "image_url": {"url": png(200, 200)}}
        assert ask(address, body([part, text()]))[0] == 413
        part = {"type": "image_url", "image_url": {"url": png(4, 4), "detail": "high"}}
        assert "detail" in ask(address, body([part, text()]))[2]["error"]["param"]


def seeing_model() -> Any:
    """A model that says it takes pictures; none of these gets so far as to be seen."""
    model = hearing_model()
    model.base_processor.image_processor = object()
    return model


def test_bodies_that_are_none_are_refused(url: str) -> None:
    """Law: what is no JSON object, of another type or too large never reaches the engine."""
    nested = b"[" * 5000 + b"]" * 5000
    wrong = [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b'{"n": 1e999}', nested, b"9" * 9999]
    for content in (*wrong, b'{"messages": ' + nested + b"}"):
        status, _, told = ask(url, content)
        assert (status, bool(told["error"]["message"])) == (400, True)
    assert ask(url, b" " * 300_000)[0] == 413
    assert ask(url, body(), {"content-type": "text/plain"})[0] == 415
    assert ask(url, body(), path="/v1/completions")[0] == 404
    assert ask(url, body(), path="/v1/models")[0] == 405
    several = [audio() for _ in range(4)]
    assert ask(url, body(several))[0] == 413


@pytest.mark.parametrize("seed", range(4))
def test_mangled_bodies_are_refused_with_a_reason(url: str, seed: int) -> None:
    """Law: a body mutated at random is answered, or refused with a reason; never an error of ours.

    `make check-serve` sends a thousand.
    """
    assert len(MANGLERS) >= 8
    for number in range(25):
        content = mangled(body([audio(), text()], seed=3), 100 * seed + number)
        status, _, told = ask(url, content)
        assert status == 200 or (400 <= status < 500 and told["error"]["message"]), told


# Load


def test_a_full_queue_is_refused() -> None:
    """Law: beyond what may wait, a request gets 429 and is told when to come again."""
    with serving(hearing_model(), ServerOptions(queue=1), start=False) as (address, server):
        server.room = 2
        server.options = ServerOptions(queue=1, timeout=1.0)
        server._running = 2
        status, headers, told = ask(address, body())
        assert (status, told["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1
        server._running = 0
        status, _, told = ask(address, body())  # nobody answers it
        assert (status, told["error"]["code"]) == (504, "timeout")
        assert server._running == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(stream: bool) -> None:
    """Law: when a client hangs up, its row is decoded no further."""
    with serving(hearing_model(), max_tokens=240) as (address, server):
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        asked = body(max_tokens=200, stream=stream, logit_bias={"1": -100})
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(asked), {"content-type": "application/json"}
        )
        until(lambda: server.engine.load.running == 1)
        connection.close()
        until(lambda: server.engine.load.running == 0)
        until(lambda: server._running == 0)
        page = server.metrics.page()[0].decode()
        assert "safe_left_total 1.0" in page
        tokens = [line for line in page.splitlines() if line.startswith("safe_answer_tokens_total")]
        assert float(tokens[0].split()[1]) < 200


def until(done: Any) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_key_is_asked_for() -> None:
    """Law: with an API key, nothing but /health is answered without it; no page may read it."""
    with serving(hearing_model(), ServerOptions(api_key="s3cret")) as (address, _):
        assert ask(address, body())[0] == 401
        assert ask(address, body(), {"authorization": "Bearer wrong"})[0] == 401
        status, headers, _ = ask(address, body(), {"authorization": "Bearer s3cret"})
        assert (status, "access-control-allow-origin" in headers) == (200, False)
        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        for path, expected in (("/health", 200), ("/metrics", 401), ("/v1/models", 401)):
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status == expected
        connection.close()


def test_metrics_count_what_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    """Law: requests, tokens and samples are counted, and neither log nor metrics quote anyone."""
    caplog.set_level("INFO", "safe_framework.serving")
    with serving(hearing_model()) as (address, server):
        ask(address, body([audio(), text("w17 w18")]))
        ask(address, body("w19"))
        ask(address, {**body(), "temperature": "w20"})
        page = server.metrics.page()[0].decode()
    assert 'safe_requests_total{status="200"} 2.0' in page
    assert 'safe_requests_total{status="400"} 1.0' in page
    assert 'safe_samples_total{acted="yes",modality="audio"} 1.0' in page
    assert "safe_answer_tokens_total 12.0" in page
    assert "safe_batch_rows_bucket" in page
    told = caplog.text + page
    assert "tokens" in caplog.text
    assert not any(word in told for word in ("w17", "w18", "w19", "w20"))


def test_tones_differ() -> None:
    """Law: the sounds of these tests are not one and the same."""
    assert not np.array_equal(tone(1).values, tone(2).values)


def test_a_sound_may_last_as_long_as_its_sense_takes() -> None:
    """Law: a sense with windows takes `longest` of them; a limit that was given stands instead."""
    model, encoder = hearing_model(), LevelEncoder().cut_into_windows(longest=90.0)
    parts: Any = {"projector": ToyProjector(encoder.dim), "fusion": ToyFusion()}
    model.add_modality("ear", encoder=encoder, **parts)
    served = served_model(model, "toy")
    for name, given, most in (("audio", None, 60), ("ear", None, 90), ("ear", 70.0, 70)):
        limits = Limits(audio_seconds=given)
        for seconds in (most - 1, most + 1):
            file = io.BytesIO()
            soundfile.write(file, np.full(seconds * 1000, 0.1), 1000, format="WAV")
            sound = {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}
            part = {"type": "input_audio", "input_audio": sound, "modality": name}
            words = {"type": "text", "text": "w5"}
            body = {"model": "toy", "messages": [{"role": "user", "content": [part, words]}]}
            if seconds < most:
                (message,) = read_request(body, served, limits).request.messages
                assert message["content"][0][name].seconds == seconds
            else:
                with pytest.raises(RequestError, match=f"longer than {most} seconds"):
                    read_request(body, served, limits)
