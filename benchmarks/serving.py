"""What a sense costs a server: throughput beside the bare base on the same engine.

Rounds of three arms, one after the other so that a busy machine troubles all of them alike: the
bare base, the model without a sample, and the model with a sound in every request. Each round gives
a ratio; their median and range are printed.

    python benchmarks/serving.py runs/quickstart [--rounds 7 --requests 16 --tokens 24]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import attrs
import numpy as np

from safe_framework.core.model import SafeModel
from safe_framework.data.audio import Waveform
from safe_framework.serving.embedded import EmbeddedEngine, PreparedRequest
from safe_framework.serving.engine import Event, Failed, Piece, Request, Sampling
from safe_framework.verification.target import open_target

QUESTIONS = ("Which instrument is playing?", "What do you hear?", "Name a colour.", "Who are you?")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--max-batch", type=int, default=8)
    arguments = parser.parse_args()
    model, _ = open_target(arguments.adapter)
    other, _ = open_target(arguments.adapter)
    bare = SafeModel(other.detach(), other.base_processor)
    bare.adopt(model.built_from) if model.built_from is not None else None
    count, tokens = arguments.requests, arguments.tokens
    arms = {
        "base": (bare, [request(n, tokens, None) for n in range(count)]),
        "without": (model, [request(n, tokens, None) for n in range(count)]),
        "hearing": (model, [request(n, tokens, noise(model, n)) for n in range(count)]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(arguments.rounds + 1):
        for name, (answering, asked) in arms.items():
            took = measured(answering, asked, arguments.max_batch)
            if number:  # the first warms up
                seconds[name].append(took)
        print(number, {name: round(each[-1], 2) for name, each in seconds.items() if each})
    for name in ("without", "hearing"):
        ratios = sorted(a / b for a, b in zip(seconds["base"], seconds[name], strict=True))
        told = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"{name}: {told} of the base's throughput, {arguments.rounds} rounds")
    best = {name: count * tokens / min(each) for name, each in seconds.items()}
    print("tokens a second, at best:", {name: round(value, 1) for name, value in best.items()})


def request(number: int, tokens: int, sound: tuple[str, Waveform] | None) -> Request:
    """A question, beside a sound if there is one."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]}]
    if sound is not None:
        parts.insert(0, {"type": sound[0], sound[0]: sound[1]})
    return Request([{"role": "user", "content": parts}], 1.0, Sampling(max_tokens=tokens))


def noise(model: SafeModel, number: int) -> tuple[str, Waveform]:
    """A second of noise for the first modality that takes sound."""
    name, rate = next(
        (name, one.sampling_rate) for name, one in model.encoders.items() if one.sampling_rate
    )
    values = np.random.default_rng(number).normal(0, 0.1, rate).astype(np.float32)
    return name, Waveform(values, rate)


def measured(model: SafeModel, asked: list[Request], max_batch: int) -> float:
    """Seconds in which all are answered, each to its last token."""
    engine = EmbeddedEngine(model, max_batch=max_batch)
    prepared: list[PreparedRequest] = [
        attrs.evolve(engine.prepare(one), ends=())
        for one in asked  # no answer is shorter
    ]
    told: list[Event] = []
    start = time.perf_counter()
    for one in prepared:
        engine.submit(one, told.append)
    engine.run_until()
    took = time.perf_counter() - start
    assert not any(isinstance(event, Failed) for event in told)
    assert sum(isinstance(one, Piece) and one.finish == "length" for one in told) == len(asked)
    return took


if __name__ == "__main__":
    main()
