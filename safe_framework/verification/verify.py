"""Ask every law of one model, and write down what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from safe_framework.core.adapter import modality_tensors
from safe_framework.core.base_model import input_device
from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError
from safe_framework.pretrained import quietly
from safe_framework.utils.hashing import tensors_fingerprint
from safe_framework.utils.versions import installed_versions
from safe_framework.verification.base_change import apply_waivers, measure_base_change
from safe_framework.verification.bench import Bench, frozen_state
from safe_framework.verification.calls import CALLS, FORWARD, GREEDY, Level
from safe_framework.verification.certificate import (
    FORMAT,
    Certificate,
    Law,
    Verdict,
    not_applicable,
)
from safe_framework.verification.laws import (
    base_differences,
    cached_decoding_agrees,
    fresh_is_silent,
    modalities_compose,
    nothing_silent,
    off_is_base,
    on_reaches_outputs,
    plugins_propose,
    rows_independent,
    same_operations,
    tensor_digests,
    threads_isolated,
    untouched,
)
from safe_framework.verification.outcome import difference

VerificationProgress = Callable[[str, int, int, str], None]

_LAWS: tuple[Callable[[Bench], Law], ...] = (
    plugins_propose,
    rows_independent,
    fresh_is_silent,
    modalities_compose,
    nothing_silent,
    on_reaches_outputs,
    cached_decoding_agrees,
    threads_isolated,
)
_BITWISE = (rows_independent, fresh_is_silent, modalities_compose, threads_isolated)
_REPEATED = (FORWARD, GREEDY)
_STEPS = len(CALLS) + 1 + len(_LAWS)


def verify(
    model: SafeModel,
    *,
    inputs: Mapping[str, Any] | None = None,
    calls: Level = "full",
    texts: Sequence[str] | None = None,
    progress: VerificationProgress | None = None,
) -> Certificate:
    """Run a model and its unwrapped base, and say of each law whether it holds.

    The base and the modalities are left as they were; so are gates, modes and the random state.

    Args:
        model: with at least one modality, trained or not.
        inputs: keyword arguments of one forward call of the base, and tensors ``NAME__KEY`` of
            samples; random ordinary tokens and made-up frames where they are not given.
        calls: ``"full"`` compares each call in each way to be off, ``"quick"`` only some pairs.
        texts: never trained on, for the drift of a base that was fine-tuned; by default those
            of its recipe, or some that ship.
        progress: called with a label, how many steps are done, how many there are, and the step.

    Returns:
        What was found; a law that fails raises nothing.

    Raises:
        SafeError: the model has no modality, or the base does not run on its inputs.
    """
    if not model.modalities:
        raise SafeError("the model has no modality to verify", hint="add one, or load an adapter")
    start = time.perf_counter()
    found = base_differences(model.base_snapshot, model.base, model.tokenizer)
    advance = _Steps(progress)
    with quietly(), frozen_state(model):
        bench = Bench.of(model, inputs)
        _check_runs(bench)
        before = tensor_digests(model.base)
        off, comparisons = off_is_base(bench, calls, advance)
        advance("operations")
        laws = [off, same_operations(bench, comparisons), *_check_laws(bench, advance)]
        found += base_differences(model.base_snapshot, model.base, model.tokenizer)
        identity = model.base_identity()
        laws = [untouched(model.base, model.base_snapshot, found, before, identity), *laws]
        changed = measure_base_change(bench, texts)
        laws = apply_waivers(bench, laws, changed, calls)
    return Certificate(
        format=FORMAT,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        **_environment(model),
        calls=calls,
        inputs="given" if inputs else "made up",
        base=dict(identity),
        modalities={name: _modality_identity(model, name) for name in model.modalities},
        laws=tuple(laws),
        comparisons=tuple(comparisons),
        seconds=round(time.perf_counter() - start, 3),
        base_changed=changed,
    )


class _Steps:
    def __init__(self, progress: VerificationProgress | None) -> None:
        self.progress, self.done = progress, 0

    def __call__(self, step: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress("verify", self.done, _STEPS, step)


def _check_laws(bench: Bench, advance: Callable[[str], None]) -> Iterator[Law]:
    for ask in _LAWS:
        law = ask(bench)
        if law.verdict is Verdict.FAILS and ask in _BITWISE and (why := _nondeterminism(bench)):
            law = not_applicable(law.key, law.name, f"the base does not repeat itself: {why}")
        advance(law.name)
        yield law


def _nondeterminism(bench: Bench) -> str:
    """Where the base gives other bits for the same call; empty if it repeats itself."""
    found = (
        difference(bench.run_unwrapped(call), bench.run_unwrapped(call), "before it")
        for call in _REPEATED
    )
    return next(filter(None, found), "")


def _check_runs(bench: Bench) -> None:
    if error := bench.run_unwrapped(FORWARD).error:
        raise SafeError(
            f"`{type(bench.model.base).__name__}` does not run on the inputs to verify it with: "
            f"{error}",
            hint="pass inputs on which it runs: verify(model, inputs={...})",
        )


def _environment(model: SafeModel) -> dict[str, Any]:
    """Versions, device, types and attention, on which bits may depend."""
    config: Any = model.base.config
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.base.parameters()}
    device = input_device(model.base)
    cuda = device.type == "cuda"
    return {
        "versions": installed_versions("safe-framework", "torch", "transformers"),
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "dtype": ", ".join(sorted(kinds)),
        "attention": str(getattr(config, "_attn_implementation", "")),
    }


def _modality_identity(model: SafeModel, name: str) -> dict[str, str]:
    modality = model.modality(name)
    return {
        "weights": tensors_fingerprint(modality_tensors(modality)),
        "encoder": type(modality.encoder).__name__,
        "projector": type(modality.projector).__name__,
        "fusion": type(modality.fusion).__name__,
        "layers": ", ".join(map(str, modality.fusion.layers)),
        "gate": str(modality.gate),
    }
