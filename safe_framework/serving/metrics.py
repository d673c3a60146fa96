"""What Prometheus is told of a server: numbers, and never of what was said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safe_framework.serving.engine import Engine
from safe_framework.utils.optional_imports import require

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server.

    Args:
        engine: whose load is told.
    """

    def __init__(self, engine: Engine) -> None:
        client = require("prometheus_client", "serve", "metrics need `prometheus-client`")
        self._client = client
        self._registry: Any = client.CollectorRegistry()
        here = {"registry": self._registry, "namespace": "safe"}
        self._requests = client.Counter("requests", "Requests by HTTP status.", ["status"], **here)
        self._seconds = client.Histogram(
            "request_seconds", "From a request to the end of its answer.", buckets=_SECONDS, **here
        )
        self._first = client.Histogram(
            "first_token_seconds", "From a request to its first token.", buckets=_SECONDS, **here
        )
        self._prompt = client.Counter("prompt_tokens", "Tokens of prompts.", **here)
        self._answer = client.Counter("answer_tokens", "Tokens of answers.", **here)
        self._samples = client.Counter(
            "samples", "Samples by modality, and whether it acted.", ["modality", "acted"], **here
        )
        self._left = client.Counter("left", "Requests whose client left.", **here)
        self._rows = client.Histogram("batch_rows", "Rows of a step.", buckets=_ROWS, **here)
        for name, text in (("waiting", "Requests not begun."), ("running", "Answers that grow.")):
            gauge = client.Gauge(name, text, **here)
            gauge.set_function(lambda name=name: getattr(engine.load, name))

    def begun(self, tokens: int, samples: Mapping[str, int], gates: Mapping[str, float]) -> None:
        """A prompt was read."""
        self._prompt.inc(tokens)
        for name, count in samples.items():
            acted = "yes" if gates.get(name) else "no"
            self._samples.labels(modality=name, acted=acted).inc(count)

    def first_token(self, seconds: float) -> None:
        """The first piece of an answer was made."""
        self._first.observe(seconds)

    def step(self, rows: int) -> None:
        """So many rows were decoded together."""
        self._rows.observe(rows)

    def left(self) -> None:
        """A client left before its answer was whole."""
        self._left.inc()

    def ended(self, status: int, seconds: float, tokens: int = 0) -> None:
        """A request was answered or refused."""
        self._requests.labels(status=str(status)).inc()
        self._answer.inc(tokens)
        if status == 200:
            self._seconds.observe(seconds)

    def page(self) -> tuple[bytes, str]:
        """All of it in Prometheus' text form, and the type of that."""
        return self._client.generate_latest(self._registry), self._client.CONTENT_TYPE_LATEST
