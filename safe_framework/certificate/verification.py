"""Ask every law of one model, and write down what was found."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from safe_framework.adapter import base_identity, modality_tensors
from safe_framework.base import device_of
from safe_framework.certificate.bench import Bench, steady
from safe_framework.certificate.broken import broken
from safe_framework.certificate.calls import CALLS, FORWARD, Level
from safe_framework.certificate.laws.composition import senses_compose
from safe_framework.certificate.laws.decoding import cached_decoding_agrees
from safe_framework.certificate.laws.fresh import fresh_is_silent
from safe_framework.certificate.laws.heard import on_is_heard
from safe_framework.certificate.laws.nothing_silent import nothing_silent
from safe_framework.certificate.laws.off import compared, same_operations
from safe_framework.certificate.laws.plugins import plugins_propose
from safe_framework.certificate.laws.rows import rows_apart
from safe_framework.certificate.laws.threads import threads_apart
from safe_framework.certificate.laws.untouched import digests, untouched
from safe_framework.certificate.result import FORMAT, Certificate, Comparison, Law
from safe_framework.checkpoints import quietly
from safe_framework.errors import SafeError
from safe_framework.fingerprint import tensors_fingerprint
from safe_framework.model import SafeModel

Progress = Callable[[str, int, int, str], None]

_LAWS: tuple[Callable[[Bench], Law], ...] = (
    plugins_propose,
    rows_apart,
    fresh_is_silent,
    senses_compose,
    nothing_silent,
    on_is_heard,
    cached_decoding_agrees,
    threads_apart,
)
_STEPS = len(CALLS) + 1 + len(_LAWS)


def verify(
    model: SafeModel,
    *,
    inputs: Mapping[str, Any] | None = None,
    calls: Level = "full",
    progress: Progress | None = None,
) -> Certificate:
    """Run a model beside its bare base, and say of each law whether it holds.

    The base and the senses are left as they were; so are gates, modes and the random state.

    Args:
        model: with at least one modality, trained or not.
        inputs: keyword arguments of one forward call of the base, and tensors ``NAME__KEY`` of
            samples; random ordinary words and made-up frames where they are not given.
        calls: ``"full"`` compares each call in each way to be off, ``"quick"`` only some pairs.
        progress: told a label, how many steps are done, how many there are, and the step.

    Returns:
        What was found; a law that fails raises nothing.

    Raises:
        SafeError: the model has no modality, or the base does not run on its inputs.
    """
    if not model.modalities:
        raise SafeError("the model has no modality to verify", hint="add one, or load an adapter")
    start = time.perf_counter()
    found = broken(model.seal, model.base, model.tokenizer)
    advance = _Steps(progress)
    with quietly(), steady(model):
        bench = Bench.of(model, inputs)
        _check_runs(bench)
        before = digests(model.base)
        off, comparisons = compared(bench, calls, advance)
        advance("operations")
        laws = [off, same_operations(bench, comparisons), *_asked(bench, advance)]
        found += broken(model.seal, model.base, model.tokenizer)
        identity = base_identity(model)
        laws = [untouched(model.base, model.seal, found, before, identity), *laws]
    return _certificate(model, identity, laws, comparisons, time.perf_counter() - start)


class _Steps:
    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.done = progress, 0

    def __call__(self, step: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress("verify", self.done, _STEPS, step)


def _asked(bench: Bench, advance: Callable[[str], None]) -> Iterator[Law]:
    for ask in _LAWS:
        law = ask(bench)
        advance(law.name)
        yield law


def _check_runs(bench: Bench) -> None:
    if error := bench.bare(FORWARD).error:
        raise SafeError(
            f"`{type(bench.model.base).__name__}` does not run on the inputs to verify it with: "
            f"{error}",
            hint="pass inputs on which it runs: verify(model, inputs={...})",
        )


def _certificate(
    model: SafeModel,
    identity: Mapping[str, str],
    laws: list[Law],
    comparisons: list[Comparison],
    seconds: float,
) -> Certificate:
    config: Any = model.base.config
    return Certificate(
        format=FORMAT,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        device=_device(model),
        dtype=_dtype(model),
        attention=str(getattr(config, "_attn_implementation", "")),
        base=dict(identity),
        modalities={name: _identity(model, name) for name in model.modalities},
        laws=tuple(laws),
        comparisons=tuple(comparisons),
        seconds=round(seconds, 3),
    )


def _identity(model: SafeModel, name: str) -> dict[str, str]:
    modality = model.modality(name)
    return {
        "weights": tensors_fingerprint(modality_tensors(modality)),
        "encoder": type(modality.encoder).__name__,
        "projector": type(modality.projector).__name__,
        "fusion": type(modality.fusion).__name__,
        "layers": ", ".join(map(str, modality.fusion.layers)),
        "gate": str(modality.gate),
    }


def _versions() -> dict[str, str]:
    names = ("safe-framework", "torch", "transformers")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def _device(model: SafeModel) -> str:
    device = device_of(model.base)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _dtype(model: SafeModel) -> str:
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.base.parameters()}
    return ", ".join(sorted(kinds))
