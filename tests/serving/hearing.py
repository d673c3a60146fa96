"""A tiny model that hears and feels, and what it is asked, for tests of engine and server."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import soundfile
import torch
from torch import Tensor

from safe_framework.core.model import SafeModel
from safe_framework.data.audio import Waveform, check_waveform
from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames
from safe_framework.serving.embedded import EmbeddedEngine
from safe_framework.serving.engine import Event, Failed, Heard, Piece, Request, Sampling
from safe_framework.serving.serve import served_model
from safe_framework.serving.server import Server, ServerOptions
from safe_framework.testing.toys import DIM, FRAMES, ToyEncoder, ToyFusion, ToyProjector
from tests.core.test_chat import PROMPT
from tests.support.toys import llama, tokenizer

RATE = 16_000


class ToyEar(Encoder):
    """Hears how loud each of a few stretches of a sound is."""

    dim, sampling_rate = DIM, RATE

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(DIM, DIM)
        self.requires_grad_(False)

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """The first samples of each sound, (batch, FRAMES, DIM)."""
        rows = []
        for number, sample in enumerate(samples):
            wave = check_waveform(sample, f"`samples[{number}]`", "toy", RATE).values
            cut = np.resize(wave, FRAMES * DIM).reshape(FRAMES, DIM)
            rows.append(torch.from_numpy(cut.copy()))
        return {"values": torch.stack(rows)}

    def forward(self, **inputs: Tensor) -> Frames:
        """A frame for each stretch."""
        values = torch.tanh(self.mix(10 * inputs["values"]))
        return Frames(values, torch.ones(values.shape[:2], dtype=torch.bool))


class ToyHand(Encoder):
    """Feels arrays of (frames, DIM)."""

    dim = DIM

    def __init__(self) -> None:
        super().__init__()
        self.felt = ToyEncoder()

    def prepare(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """As the toy's own, of arrays."""
        arrays = [torch.as_tensor(np.asarray(sample, dtype=np.float32)) for sample in samples]
        for number, one in enumerate(arrays):
            if one.ndim != 2 or one.shape[1] != DIM:
                raise SampleError(f"`samples[{number}]` has shape {tuple(one.shape)}")
        return self.felt.prepare(arrays)

    def forward(self, **inputs: Tensor) -> Frames:
        """As the toy's own."""
        frames: Frames = self.felt(**inputs)
        return frames


def hearing_model(attend: str = "answer", base: Any = None, *, chat: bool = True) -> SafeModel:
    """A tiny Llama with ``audio``, which takes sound, and ``touch``, which takes arrays.

    Both act as ``attend`` says: "answer", "all", "after" their markers, or "inline" in the text.
    """
    words = tokenizer()
    words.chat_template = PROMPT if chat else None
    base = base if base is not None else llama(max_position_embeddings=256)
    model = SafeModel(base, words)
    where: Any = "all" if attend == "inline" else attend
    marked = {"markers": attend == "after", "inline": attend == "inline"}
    kinds: dict[str, type[Encoder]] = {"audio": ToyEar, "touch": ToyHand}
    for seed, (name, kind) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        encoder, projector = kind(), ToyProjector()
        projector.tokens = FRAMES
        model.add_modality(
            name, encoder=encoder, projector=projector, fusion=ToyFusion(layers=(seed,)),
            attend=where, **marked,
        )  # fmt: skip
    return model.eval()


def tone(number: int) -> Waveform:
    """A sound, another for each number."""
    random = np.random.default_rng(number)
    return Waveform(random.uniform(-0.5, 0.5, 400).astype(np.float32), RATE)


def wav(number: int = 0, seconds: float = 0.05, kind: str = "WAV") -> str:
    """A file with noise, in base64."""
    file, random = io.BytesIO(), np.random.default_rng(number)
    soundfile.write(file, random.uniform(-0.5, 0.5, int(RATE * seconds)), RATE, format=kind)
    return base64.b64encode(file.getvalue()).decode()


def asking(words: str, sound: Waveform | None = None, **options: Any) -> Request:
    """A request of one message."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": words}]
    if sound is not None:
        parts.insert(0, {"type": "audio", "audio": sound})
    gate = options.pop("gate", None)
    options = {"max_tokens": 8, "logprobs": True, **options}
    return Request([{"role": "user", "content": parts}], gate, Sampling(**options))


@attrs.define
class Told:
    """What became of a request."""

    text: dict[int, str] = attrs.field(factory=dict)
    tokens: dict[int, list[Any]] = attrs.field(factory=dict)
    finish: dict[int, str | None] = attrs.field(factory=dict)
    counts: dict[int, int] = attrs.field(factory=dict)
    gates: Mapping[str, float] = attrs.field(factory=dict)
    error: Exception | None = None

    def take(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Failed):
            self.error = event.error
        elif isinstance(event, Heard):
            self.gates = event.gates
        elif isinstance(event, Piece):
            self.text[event.index] = self.text.get(event.index, "") + event.text
            self.tokens.setdefault(event.index, []).extend(event.tokens)
            self.finish[event.index] = event.finish
            self.counts[event.index] = event.count

    @property
    def bits(self) -> list[tuple[int, float]]:
        """Ids and log-probabilities of the first answer."""
        return [(one.id, one.logprob) for one in self.tokens.get(0, ())]


def answered(
    model: SafeModel, *requests: Request, max_batch: int = 4, **options: Any
) -> list[Told]:
    """What each of these is told when all come at once."""
    engine = EmbeddedEngine(model, max_batch=max_batch, **options)
    found = [Told() for _ in requests]
    for told, request in zip(found, requests, strict=True):
        engine.submit(engine.prepare(request), told.take)
    engine.run_until()
    return found


@contextmanager
def serving(
    model: SafeModel, options: ServerOptions | None = None, *, start: bool = True, **engine: Any
) -> Iterator[tuple[str, Server]]:
    """A server on a free port, and its address."""
    import uvicorn

    embedded = EmbeddedEngine(model, **{"max_batch": 4, **engine})
    if start:
        embedded.start()
    server = Server(embedded, served_model(model, "toy"), options or ServerOptions(), answering=8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(server.app(), port=port, log_level="error", lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        running.should_exit = True
        thread.join()
        if start:
            embedded.stop()
