"""One type of model: build a tiny one, give it a modality, ask it every law."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import nn

from safe_framework.core.model import SafeModel
from safe_framework.errors import UnsupportedBaseError
from safe_framework.pretrained.base_outline import BaseOutline
from safe_framework.verification.bench import Bench, frozen_state
from safe_framework.verification.calls import CALLS, FORWARD, GREEDY, Level
from safe_framework.verification.certificate import Certificate, Law, Verdict
from safe_framework.verification.laws import fresh_is_silent
from safe_framework.verification.target import with_made_up_modality
from safe_framework.verification.verify import verify
from tests.zoo.models import CannotBuild, TinyBase, tiny
from tests.zoo.pictures import another_picture, moves, problems, question, with_processor

BEAMS = next(call for call in CALLS if call.options.get("num_beams") == 2)
LIMIT = 900
"""Seconds after which a type has failed."""


@attrs.frozen
class Entry:
    """What was found of one type.

    Attributes:
        task: ``"causal"``, ``"image_text"`` or ``"seq2seq"``.
        model_type: its name in transformers.
        model_class: that was built.
        status: ``"holds"``, ``"refused"``, ``"unbuilt"`` or ``"fails"``.
        laws: verdict by law.
        generates: which decodings work with the modality on: ``"greedy"``, ``"beams"``.
        picture: how a picture was given that reaches the answer: ``"processor"``, ``"tensors"``,
            or ``"none"`` where it does not; empty for a type that takes none.
        limits: what a user of this type should know.
        reason: why it was refused or not built, or what failed.
        seconds: that it took.
    """

    task: str
    model_type: str
    model_class: str = ""
    status: str = "holds"
    laws: Mapping[str, str] = attrs.field(factory=dict)
    generates: tuple[str, ...] = ()
    picture: str = ""
    limits: tuple[str, ...] = ()
    reason: str = ""
    seconds: float = 0.0


def examine(task: str, model_type: str, calls: Level = "full") -> Entry:
    """Build a tiny model of the type and say which laws it holds; raises nothing."""
    start, entry = time.perf_counter(), Entry(task, model_type)
    try:
        with _limited(LIMIT):
            entry = _examined(tiny(task, model_type), calls)
    except CannotBuild as error:
        entry = attrs.evolve(entry, status="unbuilt", reason=error.message)
    except UnsupportedBaseError as error:
        entry = attrs.evolve(entry, status="refused", reason=error.message)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        entry = attrs.evolve(entry, status="fails", reason=reason)
    return attrs.evolve(entry, seconds=round(time.perf_counter() - start, 2))


def _examined(base: TinyBase, calls: Level) -> Entry:
    torch.manual_seed(0)
    model, limits = _attached(base)
    with frozen_state(model):
        fresh = fresh_is_silent(Bench.of(model, base.inputs))
    train(model)
    certificate = verify(model, inputs=base.inputs, calls=calls)
    laws = [fresh if law.key == "L5" else law for law in certificate.laws]
    works, broken, unable = _decodings(model, base)
    given, unreached = _picture(model, base)
    failed = [f"{law.key} {law.name}: {law.findings[0]}" for law in laws if law.findings]
    failed += [*broken, *unreached, *_outlined(model)]
    return Entry(
        base.task,
        base.model_type,
        model_class=type(base.model).__name__,
        status="fails" if failed else "holds",
        laws=_verdicts(laws),
        generates=works,
        picture=given,
        limits=(*limits, *unable, *_limits(model, certificate), *_learning(model, base)),
        reason="; ".join(failed),
    )


def _attached(base: TinyBase) -> tuple[SafeModel, list[str]]:
    """The base with a made-up modality, on plain text if it runs on that."""
    try:
        return with_made_up_modality(base.model), []
    except UnsupportedBaseError:
        model = with_made_up_modality(base.model, example=base.inputs)
    return model, [f"wants an `example` of {', '.join(f'`{name}`' for name in base.inputs)}"]


def train(model: SafeModel) -> None:
    """Make the deltas as large as if they had been trained."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.trainable_parameters().values():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def _verdicts(laws: list[Law]) -> dict[str, str]:
    found: dict[str, str] = {}
    for law in laws:
        key = law.key or law.name
        worse = found.get(key) == Verdict.FAILS.value
        found[key] = found[key] if worse else law.verdict.value
    return found


def _decodings(model: SafeModel, base: TinyBase) -> tuple[tuple[str, ...], list[str], list[str]]:
    """Which decodings work with the modality on, which break, and which the base cannot do."""
    works, broken, unable = [], [], []
    with frozen_state(model):
        bench = Bench.of(model, base.inputs)
        for name, call in (("greedy", GREEDY), ("beams", BEAMS)):
            able = bench.supported(call, attrs.evolve(call, name=f"{name}, plain", batch="plain"))
            if not able:
                unable.append(f"the base has no {name}: {_line(bench.run_unwrapped(call).error)}")
            elif error := bench.run_on(able[0]).error:
                broken.append(f"{name} with the sense on: {_line(error)}")
            else:
                works.append(name)
    return tuple(works), broken, unable


def _outlined(model: SafeModel) -> Iterator[str]:
    """Where ``safe check`` would take the base for another, by its config alone."""
    config: Any = model.base.config
    outline = BaseOutline(json.loads(config.to_json_string()))
    if outline.layers not in (None, model.stack.count):
        yield f"its config is read as one of {outline.layers} layers, not {model.stack.count}"


def _picture(model: SafeModel, base: TinyBase) -> tuple[str, list[str]]:
    """How a picture that reaches the answer was given, and what keeps one from it."""
    if base.task != "image_text":
        return "", []
    if makers := with_processor(base.model_type):
        return "processor", [problem for make in makers for problem in _by_processor(*make())]
    other = another_picture(base.inputs)
    if other is None or not moves(model.base, base.inputs, other):
        return "none", []
    return "tensors", list(problems(model, base.inputs, other))


def _by_processor(base: nn.Module, processor: Any) -> Iterator[str]:
    model = with_made_up_modality(base, processor)
    train(model)
    red, blue = (question(base, processor, colour) for colour in ("red", "blue"))
    yield from problems(model, red, blue)


def _limits(model: SafeModel, certificate: Certificate) -> Iterator[str]:
    if any(law.key == "L4" and law.verdict is Verdict.NOT_APPLICABLE for law in certificate.laws):
        yield "mixes rows: L4 with `split_rows`"
    stack = model.stack
    if stack.layout.axes != "(batch, length, hidden)":
        yield f"hidden states are {stack.layout.axes}"
    if stack.passes > 1:
        yield f"runs its layers {stack.passes} times; the modality enters in pass {stack.entry + 1}"
    for layer, reason in stack.unsupported_layers.items():
        yield f"layer {layer}: {reason}"


def _learning(model: SafeModel, base: TinyBase) -> Iterator[str]:
    """What is wrong with gradients, if anything is."""
    with frozen_state(model), torch.enable_grad():
        bench = Bench.of(model, base.inputs)
        call = attrs.evolve(FORWARD, mode="grad")
        try:
            _logits(model(**bench.inputs(call), **bench.samples)).float().sum().backward()
        except RuntimeError as error:
            yield f"cannot be trained: {_line(error)}"
            return
    unreached = [name for name, p in model.trainable_parameters().items() if p.grad is None]
    if unreached:
        yield f"no gradient reaches {len(unreached)} tensors of the sense"


def _line(error: object) -> str:
    return str(error).splitlines()[0]


def _logits(out: Any) -> torch.Tensor:
    found: torch.Tensor = out.logits if hasattr(out, "logits") else out[0]
    return found


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
