"""Ask every law of one model, and write down what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from safe_framework.core.adapter import base_identity, modality_tensors
from safe_framework.core.base_model import device_of
from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError
from safe_framework.pretrained import quietly
from safe_framework.utils.hashing import tensors_fingerprint
from safe_framework.utils.versions import installed_versions
from safe_framework.verification.base_change import changed_base, restated
from safe_framework.verification.bench import Bench, steady
from safe_framework.verification.calls import CALLS, FORWARD, GREEDY, Level
from safe_framework.verification.certificate import (
    FORMAT,
    Certificate,
    Law,
    Verdict,
    not_applicable,
)
from safe_framework.verification.laws import (
    broken,
    cached_decoding_agrees,
    compared,
    digests,
    fresh_is_silent,
    nothing_silent,
    on_is_heard,
    plugins_propose,
    rows_apart,
    same_operations,
    senses_compose,
    threads_apart,
    untouched,
)
from safe_framework.verification.outcome import difference

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
_BITWISE = (rows_apart, fresh_is_silent, senses_compose, threads_apart)
_REPEATED = (FORWARD, GREEDY)
_STEPS = len(CALLS) + 1 + len(_LAWS)


def verify(
    model: SafeModel,
    *,
    inputs: Mapping[str, Any] | None = None,
    calls: Level = "full",
    texts: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Run a model beside its bare base, and say of each law whether it holds.

    The base and the senses are left as they were; so are gates, modes and the random state.

    Args:
        model: with at least one modality, trained or not.
        inputs: keyword arguments of one forward call of the base, and tensors ``NAME__KEY`` of
            samples; random ordinary words and made-up frames where they are not given.
        calls: ``"full"`` compares each call in each way to be off, ``"quick"`` only some pairs.
        texts: never trained on, for the drift of a base that stage B changed; by default those
            of its recipe, or some that ship.
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
        changed = changed_base(bench, texts)
        laws = restated(bench, laws, changed, calls)
    return Certificate(
        format=FORMAT,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        **_circumstances(model),
        calls=calls,
        inputs="given" if inputs else "made up",
        base=dict(identity),
        modalities={name: _identity(model, name) for name in model.modalities},
        laws=tuple(laws),
        comparisons=tuple(comparisons),
        seconds=round(time.perf_counter() - start, 3),
        base_changed=changed,
    )


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
        if law.verdict is Verdict.FAILS and ask in _BITWISE and (why := _restless(bench)):
            law = not_applicable(law.key, law.name, f"the base does not repeat itself: {why}")
        advance(law.name)
        yield law


def _restless(bench: Bench) -> str:
    """Where the base gives other bits for the same call; empty if it repeats itself."""
    found = (difference(bench.bare(call), bench.bare(call), "before it") for call in _REPEATED)
    return next(filter(None, found), "")


def _check_runs(bench: Bench) -> None:
    if error := bench.bare(FORWARD).error:
        raise SafeError(
            f"`{type(bench.model.base).__name__}` does not run on the inputs to verify it with: "
            f"{error}",
            hint="pass inputs on which it runs: verify(model, inputs={...})",
        )


def _circumstances(model: SafeModel) -> dict[str, Any]:
    """Versions, device, types and attention, on which bits may depend."""
    config: Any = model.base.config
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.base.parameters()}
    device = device_of(model.base)
    cuda = device.type == "cuda"
    return {
        "versions": installed_versions("safe-framework", "torch", "transformers"),
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "dtype": ", ".join(sorted(kinds)),
        "attention": str(getattr(config, "_attn_implementation", "")),
    }


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
