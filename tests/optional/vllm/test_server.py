"""``safe serve --engine vllm``, and vLLM's own server with an adapter's folder."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import safe_framework
from safe_framework.serving.serve import EngineOptions, make_vllm_server
from safe_framework.serving.server_laws import Answer, ServerClient, same, server_laws, sound
from safe_framework.verification.certificate import Verdict
from tests.optional.vllm.conftest import CLOSING_WORDS, OPENING_WORDS, Making

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

CLIENTS, REQUESTS = 8, int(os.environ.get("SAFE_SOAK", "25"))
OPTIONS = {"kv_cache_memory_bytes": 2**26, "block_size": 32}


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
    return found


@contextmanager
def running(folder: Path) -> Iterator[tuple[str, Any]]:
    """Our server before vLLM: its address, and itself."""
    server = make_vllm_server(folder, "toy", EngineOptions(max_batch=8), vllm=OPTIONS)
    port = free_port()
    config = uvicorn.Config(server.app(), port=port, log_level="error", lifespan="off")
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        web.should_exit = True
        thread.join()
        server.engine.stop()


@pytest.fixture(scope="module")
def served(adapter: Making) -> Iterator[tuple[str, Any]]:
    """A server of a tiny adapter."""
    with running(adapter()) as found:
        yield found


PARTS = [None, *({"type": "input_audio", "input_audio": sound(hertz)} for hertz in (220, 1760))]
WORDS = (*OPENING_WORDS, *CLOSING_WORDS)


def content(words: str, part: Any) -> Any:
    """Of a message."""
    return words if part is None else [part, {"type": "text", "text": words}]


def test_every_law_of_a_server_holds(served: tuple[str, Any], adapter: Making) -> None:
    """Law: asked from outside, the server keeps each of its promises, beside the bare base too."""
    laws = server_laws(ServerClient(served[0]), safe_framework.load(adapter()))
    assert {law.name: law.verdict for law in laws if law.verdict is not Verdict.HOLDS} == {}
    assert len(laws) == 5


def test_a_relevance_head_decides(served: tuple[str, Any]) -> None:
    """Law: at gate "auto" the answer is that without the sound or at gate 1, and says which."""
    client, told = ServerClient(served[0]), list[float]()
    for words in WORDS:
        opened = words in OPENING_WORDS
        found = gates_of(served[0], content(words, PARTS[1]))
        assert found == {"audio": float(opened)}
        part = PARTS[1] if opened else None
        answer = client.answer("toy", content(words, PARTS[1]), gate="auto")
        assert same(answer, client.answer("toy", content(words, part), gate=1), exact=not opened)
        told += found.values()
    assert set(told) == {0.0, 1.0}


def gates_of(url: str, asked: Any) -> Any:
    """At which strengths modalities act in two answers, where a head decides."""
    body = {"model": "toy", "messages": [{"role": "user", "content": asked}], "max_tokens": 4,
            "gate": "auto", "n": 2}  # fmt: skip
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
    )
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found["safe"]["gates"]


def test_clients_at_once_are_answered_as_alone(served: tuple[str, Any]) -> None:
    """Law: eight clients, some of which hang up, are each answered as if alone."""
    url, server = served
    client = ServerClient(url)
    cases = [(words, part) for words in WORDS for part in PARTS]
    alone = [client.answer("toy", content(*case)) for case in cases]

    def talk(number: int) -> list[tuple[int, Answer]]:
        """What one client is told."""
        chance, found = random.Random(number), list[tuple[int, Answer]]()
        for _ in range(REQUESTS):
            case = chance.randrange(len(cases))
            if chance.random() < 0.1:
                hang_up(url, content(*cases[case]))
            else:
                found.append((case, client.answer("toy", content(*cases[case]))))
        return found

    with ThreadPoolExecutor(CLIENTS) as pool:
        told = [one for each in pool.map(talk, range(CLIENTS)) for one in each]
    assert len(told) > CLIENTS * REQUESTS // 2
    assert [case for case, answer in told if not same(answer, alone[case], exact=False)] == []
    end = time.monotonic() + 30
    while (load := server.engine.load) != type(load)(0, 0) and time.monotonic() < end:
        time.sleep(0.1)
    assert (load.waiting, load.running) == (0, 0)


def hang_up(url: str, asked: Any) -> None:
    """Ask for a long answer, and leave once it begins."""
    body = {"model": "toy", "messages": [{"role": "user", "content": asked}], "max_tokens": 100,
            "stream": True}  # fmt: skip
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
    )
    connection.getresponse().read(10)
    connection.close()


def test_vllm_s_own_server_takes_the_folder(served: tuple[str, Any], adapter: Making) -> None:
    """Law: ``vllm serve FOLDER`` answers with and without a sound as ``safe serve`` does."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("vllm")), "serve", str(adapter()), "--port", str(port),
        "--served-model-name", "toy", "--max-num-seqs", "8",
        "--kv-cache-memory-bytes", str(OPTIONS["kv_cache_memory_bytes"]),
        "--block-size", str(OPTIONS["block_size"]), "--trust-request-mm-kwargs", "--enforce-eager",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            client = ServerClient(f"http://127.0.0.1:{port}")
            wait_for(client, process)
            for words in WORDS:
                for part in PARTS:
                    asked = content(words, part)
                    found = client.answer("toy", asked, ignore_eos=True)
                    expected = ServerClient(served[0]).answer("toy", asked)
                    assert same(found[: len(expected)], expected, exact=False)
                closed = {"mm_processor_kwargs": {"gate": 0}}
                silent = client.answer("toy", content(words, PARTS[1]), **closed)
                assert silent == client.answer("toy", words)
        finally:
            process.terminate()


def wait_for(client: ServerClient, process: Any) -> None:
    """Until a server answers."""
    while process.poll() is None:
        try:
            client.get("/v1/models")
        except safe_framework.errors.DataError:
            time.sleep(1)
        else:
            return
    raise AssertionError("the server ended")
