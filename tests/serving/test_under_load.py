"""A server under load, told to stop and killed: ``make check-serve``.

``SAFE_SOAK`` says how many requests each of eight clients sends; ``make check-serve SOAK=500`` is
what docs/serving.md reports.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import safe_framework
from safe_framework.core.decoding import DecodingBatch, read_prompt
from safe_framework.core.model import SafeModel
from safe_framework.serving.limits import Limits
from safe_framework.serving.server import ServerOptions
from safe_framework.serving.server_laws import same
from tests.core.test_chat import PROMPT
from tests.serving.hearing import RATE, Told, hearing_model, serving, wav
from tests.serving.mangled import mangled
from tests.serving.test_server import ask, audio, body, text
from tests.support.toys import llama, tokenizer

pytestmark = pytest.mark.serve

CLIENTS, REQUESTS = 8, int(os.environ.get("SAFE_SOAK", "25"))
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def kinds() -> list[dict[str, Any]]:
    """Requests of every kind, more than a third of them without a sample."""
    found = []
    for n in range(30):
        words = f"w{5 + n} w{30 - n} " * (1 + n % 3)
        content = [audio(wav(n)), text(words)] if n % 5 in (0, 2, 4) else words
        extra: dict[str, Any] = {"gate": (1, 0.5, 0)[n % 3]} if n % 5 == 4 else {}
        if n % 7 == 3:
            extra |= {"temperature": 1.0, "seed": n}
        found.append(
            body(content, max_tokens=2 + n % 11, logprobs=True, stream=n % 4 == 1, **extra)
        )
    return found


def answer(
    connection: http.client.HTTPConnection, asked: dict[str, Any]
) -> list[tuple[str, float]]:
    """Tokens and log-probabilities, of a stream or not."""
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
    response = connection.getresponse()
    content = response.read().decode()
    assert response.status == 200, content
    if not asked["stream"]:
        (choice,) = json.loads(content)["choices"]
        return [(one["token"], one["logprob"]) for one in choice["logprobs"]["content"]]
    assert content.endswith("data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in content.splitlines() if line.startswith("data: {")]
    told = [one["choices"][0]["logprobs"] for one in events]
    return [(t["token"], t["logprob"]) for one in told if one for t in one["content"]]


def test_eight_clients_get_their_own_answers() -> None:
    """Law: over a soak of mixed requests, of which some clients leave, none is lost or swapped.

    What was answered without a sample is the bare base's bit for bit: the base, doing what the
    engine's journal says, gives the same log-probabilities.
    """
    journal, asked = list[Any](), kinds()
    model = hearing_model()
    with serving(model) as (address, _):
        quiet = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)
        alone = [answer(quiet, one) for one in asked]
        quiet.close()
    given = list[tuple[int, list[tuple[str, float]]]]()
    with serving(model, journal=journal) as (address, server):
        asked_of, told = watched(server)
        place = address.removeprefix("http://")

        def client(number: int) -> None:
            """Ask, one after the other; now and then leave in the middle."""
            random, connection = Random(number), http.client.HTTPConnection(place, timeout=300)
            for _ in range(REQUESTS):
                kind = random.randrange(len(asked))
                if random.random() < 0.05:
                    leave(place, asked[kind])
                found = answer(connection, asked[kind])
                given.append((kind, found))
            connection.close()

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(client, range(CLIENTS)))
        wait(lambda: server._running == 0)
        page = server.metrics.page()[0].decode()
    assert len(given) == CLIENTS * REQUESTS
    swapped = [(k, found) for k, found in given if not same(found, alone[k], exact=False)]
    assert swapped == []
    assert 'status="500"' not in page
    plain = replayed(journal, asked_of, told)
    print(f"{len(given)} answers, {plain} of them without a sample, bit for bit the base's")
    assert plain > CLIENTS * REQUESTS / 4


def leave(place: str, asked: dict[str, Any]) -> None:
    """Ask, and hang up at once."""
    connection = http.client.HTTPConnection(place, timeout=60)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
    connection.close()


def watched(server: Any) -> tuple[dict[int, Any], dict[int, Told]]:
    """What is asked of an engine from now on, and what it tells, by the number of the ticket."""
    asked, told, submit = dict[int, Any](), dict[int, Told](), server.engine.submit

    def watching(request: Any, sink: Any) -> Any:
        """Hand the request in, and listen."""
        own = Told()

        def both(event: Any) -> None:
            """Tell the client too."""
            own.take(event)
            sink(event)

        ticket = submit(request, both)
        asked[ticket.number], told[ticket.number] = request, own
        return ticket

    server.engine.submit = watching
    return asked, told


def replayed(journal: list[Any], asked: dict[int, Any], told: dict[int, Told]) -> int:
    """Have the bare base do what a journal says, and compare each log-probability bit for bit.

    Gives how many requests it answered.
    """
    base = SafeModel(llama(max_position_embeddings=256), tokenizer())
    batch, rows, count = DecodingBatch(base), list[tuple[int, int]](), 0
    for kind, what in journal:
        if kind == "join":
            words = {key: v for key, v in asked[what].batch.items() if "__" not in key}
            prompt = read_prompt(base, words)
            compare(told[what], 0, prompt.logits)
            batch.join([prompt])
            rows.append((what, 1))
            count += 1
        elif kind == "keep":
            batch.keep(what)
            rows = [rows[row] for row in what]
        else:
            logits = batch.step(what)
            for (number, place), own in zip(rows, logits, strict=True):
                compare(told[number], place, own)
            rows = [(number, place + 1) for number, place in rows]
    return count


def compare(told: Told, place: int, logits: torch.Tensor) -> None:
    """The token at a place of an answer is as likely as the base's logits say, bit for bit."""
    if place < len(told.bits):  # else it was the end, or nobody wanted it any more
        token, logprob = told.bits[place]
        assert float(logits.log_softmax(-1)[token]) == logprob


def test_a_thousand_mangled_bodies() -> None:
    """Law: each of a thousand mutated bodies is answered, or refused as a 4xx with a reason."""
    options = ServerOptions(limits=Limits(body_bytes=200_000, audio_seconds=1.0, samples=3))
    statuses = dict[int, int]()
    with serving(hearing_model(), options, max_tokens=8) as (address, _):
        for number in range(1000):
            content = mangled(body([audio(), text()], seed=3), 10_000 + number)
            status, _, told = (
                ask_stream(address, content) if b'"stream": true' in content else
                ask(address, content)
            )  # fmt: skip
            statuses[status] = statuses.get(status, 0) + 1
            assert status == 200 or (400 <= status < 500 and told["error"]["message"]), told
    print(statuses)
    assert sum(statuses.values()) == 1000
    assert statuses[400] > 500


def ask_stream(address: str, content: bytes) -> Any:
    """As ``ask``, of what may be a stream."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", content, headers)
    response = connection.getresponse()
    found = response.read()
    connection.close()
    return response.status, response.headers, {} if response.status == 200 else json.loads(found)


# The command


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Path:
    """A tiny adapter on disk, whose base has a chat template."""
    from tests.core.conftest import RECIPE

    folder = tmp_path_factory.mktemp("served")
    (folder / "base").mkdir()
    words = tokenizer()
    words.chat_template = PROMPT
    words.save_pretrained(folder / "base")
    llama(max_position_embeddings=512).save_pretrained(folder / "base")  # type: ignore[operator]  # a transformers model
    (folder / "whisper").symlink_to(checkpoints / "whisper")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(folder=folder, rank=2, seed=0), "utf-8")
    model = safe_framework.build(recipe)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    return model.save_pretrained(folder / "quickstart")


@contextmanager
def command(adapter: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``safe serve`` in a process of its own, and its address."""
    line = [sys.executable, "-m", "safe_framework.cli", "serve", str(adapter), "--port", "0"]
    with subprocess.Popen([*line, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = iter(process.stdout)
            found = next(match for one in told if (match := re.search(r"on (http://\S+)", one)))
            yield process, found[1]
        finally:
            process.kill()


def wait(done: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_page_works_as_printed(adapter: Path, tmp_path: Path) -> None:
    """Law: what docs/serving.md prints for curl, the client and the shell does what it says."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    asked = [code for kind, code in blocks if kind == "sh" and "curl" in code]
    python = [code for kind, code in blocks if kind == "python"]
    assert (len(asked), len(python)) == (2, 2)
    soundfile.write(tmp_path / "clip.wav", 0.3 * np.sin(0.2 * np.arange(4000)), RATE)
    with command(adapter) as (_, address):
        here = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
        for code in asked:
            told = subprocess.run(["bash", "-euc", on(code, address)], **here)  # type: ignore[call-overload]  # options by name
            assert '"content": "' in told.stdout
        for code in python:
            told = subprocess.run([sys.executable, "-c", on(code, address)], **here)  # type: ignore[call-overload]  # options by name
            assert told.stdout.strip()
        verify = [sys.executable, "-m", "safe_framework.cli", "verify", str(adapter)]
        told = subprocess.run([*verify, "--server", address], **here)  # type: ignore[call-overload]  # options by name
        assert told.stdout.count(": holds") == 5


def on(code: str, address: str) -> str:
    """A page's code, which asks this server."""
    assert "http://localhost:8000" in code
    return code.replace("http://localhost:8000", address)


def test_told_to_stop_it_finishes(adapter: Path) -> None:
    """Law: after SIGTERM what runs is answered whole, nothing new is taken, and the code is 0."""
    with command(adapter) as (process, address):
        asked = body("w5", model="quickstart", max_tokens=400, stream=True)
        asked["logit_bias"] = {"1": -100, "10": -100}
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
        response = connection.getresponse()
        first = response.read(400)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(ConnectionError):
            ask(address, body(model="quickstart"))
        rest = response.read().decode()
        assert rest.endswith("data: [DONE]\n\n")
        assert '"finish_reason": "length"' in rest
        assert first
        connection.close()
        assert process.wait(60) == 0


def test_a_killed_server_loses_what_runs_alone(adapter: Path) -> None:
    """Law: after kill -9 a server starts as before, and answers as before."""
    expected = None
    for _ in range(2):
        with command(adapter) as (process, address):
            asked = body([audio(wav(2)), text("w5 w6")], model="quickstart")
            found = ask(address, asked)[2]["choices"]
            assert expected in (None, found)
            expected = found
            long = body(
                "w5", model="quickstart", max_tokens=450, logit_bias={"1": -100, "10": -100}
            )
            lost = list[BaseException]()

            def client(address: str = address, long: Any = long, lost: Any = lost) -> None:
                """Ask for what will not be answered."""
                try:
                    ask(address, long)
                except (OSError, http.client.HTTPException) as error:
                    lost.append(error)

            thread = threading.Thread(target=client)
            thread.start()
            time.sleep(0.2)
            process.kill()
            thread.join()
            assert len(lost) == 1


def test_a_killed_file_goes_on(adapter: Path, tmp_path: Path) -> None:
    """Law: ``safe generate`` that is killed ends with the bytes of a whole run."""
    soundfile.write(tmp_path / "clip.wav", 0.3 * np.sin(0.2 * np.arange(4000)), RATE)
    rows = [{"question": f"w{5 + n % 30}", **({"audio": "clip.wav"} if n % 2 else {})}
            for n in range(300)]  # fmt: skip
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    line = [
        sys.executable,
        "-m",
        "safe_framework.cli",
        "generate",
        str(adapter),
        "--data",
        str(data),
    ]
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    subprocess.run([*line, "--out", str(whole)], check=True, capture_output=True)
    half = whole.stat().st_size / 2
    with subprocess.Popen([*line, "--out", str(cut)], stdout=subprocess.DEVNULL) as process:
        wait(lambda: size(cut) > half)
        assert process.poll() is None
        process.kill()
    assert size(cut) < whole.stat().st_size
    subprocess.run([*line, "--out", str(cut)], check=True, capture_output=True)
    assert cut.read_bytes() == whole.read_bytes()


def size(path: Path) -> int:
    """Of a file, if it is there."""
    return path.stat().st_size if path.exists() else 0
