"""Ask every law of one model, and write down what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import torch

from safe_framework.core.adapter import modality_tensors
from safe_framework.core.base_model import input_device
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import RelevanceHead
from safe_framework.errors import SafeError
from safe_framework.pretrained import quietly
from safe_framework.utils.hashing import tensors_fingerprint, text_fingerprint
from safe_framework.utils.versions import installed_versions
from safe_framework.verification.base_change import apply_waivers, measure_base_change
from safe_framework.verification.bench import Bench, frozen_state
from safe_framework.verification.calls import FORWARD, GREEDY, Level, calls_to_compare
from safe_framework.verification.certificate import (
    FORMAT,
    Certificate,
    Comparison,
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
    pictures_are_seen,
    pictures_not_asked,
    plugins_propose,
    rows_independent,
    same_operations,
    tensor_digests,
    threads_isolated,
    untouched,
)
from safe_framework.verification.outcome import difference
from safe_framework.verification.pictures import (
    PictureBench,
    PictureBenches,
    given_pictures,
    picture_benches,
)
from safe_framework.verification.prompt import prompt_is_base
from safe_framework.verification.relevance import calibrated, irrelevant_is_absent
from safe_framework.verification.work import VerificationProgress, Work, units_of

_LAWS: Mapping[Callable[[Bench], Law], int] = {
    plugins_propose: 40,
    rows_independent: 50,
    fresh_is_silent: 14,
    modalities_compose: 10,  # for each choice of modalities
    nothing_silent: 4,
    prompt_is_base: 60,
    irrelevant_is_absent: 120,
    on_reaches_outputs: 12,
    cached_decoding_agrees: 18,
    threads_isolated: 6,
}
"""Each law, and about how many forward calls it takes as long as."""
_OPERATIONS, _SEEING = 80, 30
_HASHED = 2
"""How often weights are hashed after the calls."""
_BITWISE = (
    rows_independent, fresh_is_silent, modalities_compose, prompt_is_base, irrelevant_is_absent,
    threads_isolated,
)  # fmt: skip
_REPEATED = (FORWARD, GREEDY)


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
    with quietly(), frozen_state(model):
        bench = Bench.of(model, inputs)
        _check_runs(bench)
        pictures = given_pictures(bench) if inputs else picture_benches(model)
        benches = _with_levels(bench, pictures, calls)
        hashing = time.perf_counter()
        before = tensor_digests(model.base)
        hashing = _HASHED * (time.perf_counter() - hashing)
        work = _planned(benches, pictures, hashing, progress)
        laws, comparisons = _ask({bench: calls}, work)
        if isinstance(pictures, PictureBenches):
            levels = {one: level for one, level in benches.items() if one is not bench}
            more, compared = _ask(levels, work)
            laws += [_with_pictures(law) for law in more]
            comparisons += compared
        laws += _seeing(pictures, work)
        work.note("weights are hashed again")
        found += base_differences(model.base_snapshot, model.base, model.tokenizer)
        identity = model.base_identity()
        laws = [untouched(model.base, model.base_snapshot, found, before, identity), *laws]
        changed = measure_base_change(bench, texts)
        laws = apply_waivers(benches, laws, changed)
        work.finish("done")
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
        accepted=model.base_snapshot.accepted,
    )


Pictures = PictureBenches | PictureBench | str | None
"""Benches with pictures; the caller's inputs, that hold some; why there are none; or blind."""


def _with_levels(bench: Bench, pictures: Pictures, level: Level) -> dict[Bench, Level]:
    """Every bench, the main ones first, with how many of its calls are compared."""
    if not isinstance(pictures, PictureBenches):
        return {bench: level}
    more: dict[Bench, Level] = {one.bench: "quick" for one in pictures.more}
    return {bench: level, pictures.main.bench: level, **more}


def _ask(benches: Mapping[Bench, Level], work: Work) -> tuple[list[Law], list[Comparison]]:
    """L2 of every bench, and each other law of the first."""
    bench = next(iter(benches))
    off, comparisons = off_is_base(benches, work.advance)
    operations = same_operations(bench, comparisons)
    work.advance(bench, bench.named(operations.name), _OPERATIONS)
    return [off, operations, *_check_laws(bench, work)], comparisons


def _check_laws(bench: Bench, work: Work) -> Iterator[Law]:
    for ask, units in _LAWS.items():
        law = ask(bench)
        if law.verdict is Verdict.FAILS and ask in _BITWISE and (why := _nondeterminism(bench)):
            law = not_applicable(law.key, law.name, f"the base does not repeat itself: {why}")
        work.advance(bench, bench.named(law.name), units * _times(ask, bench))
        yield law


def _times(ask: Callable[[Bench], Law], bench: Bench) -> int:
    """How often a law is asked of a bench: L6 of every choice of modalities, L9 of heads alone."""
    if ask is irrelevant_is_absent:
        return int(any(bench.model.modality(n).relevance for n in bench.model.modalities))
    return 2 ** len(bench.model.modalities) - 2 if ask is modalities_compose else 1


def _with_pictures(law: Law) -> Law:
    return attrs.evolve(law, name=f"{law.name}, with pictures")


def _seeing(pictures: Pictures, work: Work) -> list[Law]:
    """The verdict on whether the base sees, where there could be pictures."""
    if pictures is None:
        return []
    if isinstance(pictures, str):
        return [pictures_not_asked(pictures)]
    asked = pictures if isinstance(pictures, PictureBenches) else PictureBenches(pictures)
    law = pictures_are_seen(asked.all, asked.note)
    work.advance(asked.main.bench, law.name, _SEEING)
    return [law]


def _planned(
    benches: Mapping[Bench, Level],
    pictures: Pictures,
    hashing: float,
    progress: VerificationProgress | None,
) -> Work:
    """All that there is to do, of which some seconds are for hashing at the end."""
    main = list(benches)[:2] if isinstance(pictures, PictureBenches) else list(benches)[:1]
    laws = sum(units * _times(ask, main[0]) for ask, units in _LAWS.items()) + _OPERATIONS
    units = {
        bench: units_of(calls_to_compare(level)) + (laws if bench in main else 0)
        for bench, level in benches.items()
    }
    if pictures is not None and not isinstance(pictures, str):
        units[main[-1]] += _SEEING
    return Work.of(units, hashing, progress)


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
        "attend": modality.attend,
        "gate": str(modality.gate),
        **_relevance_identity(modality.relevance),
    }


def _relevance_identity(head: RelevanceHead | None) -> dict[str, str]:
    """What decides where the gate is left open, and what was shown of it."""
    if head is None:
        return {}
    exact = text_fingerprint(tensors_fingerprint(head.state_dict()), head.settings())
    return {"relevance": exact, "calibrated": calibrated(head)}
