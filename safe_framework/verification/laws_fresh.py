"""L5: a sense that was never trained leaves the outputs exactly the base's at gate 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch

from safe_framework.core.hook_inventory import hooks_on, taken_off
from safe_framework.core.model import SafeModel
from safe_framework.interfaces import registry
from safe_framework.verification.bench import Bench
from safe_framework.verification.bench_probes import moved
from safe_framework.verification.calls import FORWARD, GREEDY, Call
from safe_framework.verification.certificate import Law, judged, not_applicable
from safe_framework.verification.outcome_compare import difference

_NAME = "Fresh is silent"
_CALLS = (
    FORWARD,
    Call("forward, padded left", "forward", "left", mode="inference"),
    GREEDY,
)


def fresh_is_silent(bench: Bench) -> Law:
    """The verdict on L5: of the model itself if it is fresh, else of a fresh one by its recipe."""
    with moved(bench.model) as trained:
        bench.on(FORWARD)
    if not trained:
        return judged("L5", _NAME, "the model is fresh", _silence(bench))
    if bench.model.recipe is None:
        why = "the model is trained, and no recipe says how to make a fresh one"
        return not_applicable("L5", _NAME, why)
    with _made_anew(bench) as fresh:
        return judged("L5", _NAME, "a fresh sense by the same recipe", _silence(fresh))


def _silence(bench: Bench) -> list[str]:
    compared = (
        (call.name, difference(bench.on(call), bench.bare(call)))
        for call in bench.possible(*_CALLS)
    )
    return [f"{name} at gate 1: {found}" for name, found in compared if found]


@contextmanager
def _made_anew(bench: Bench) -> Iterator[Bench]:
    """The same base with new projectors and adapters, beside encoders that are there already."""
    model = bench.model
    assert model.recipe is not None
    with taken_off([placed for placed in hooks_on(model.base) if placed.ours]):
        fresh = SafeModel(model.base, layers_path=model.stack.path, example=model._example)
        fresh.split_rows = model.split_rows
        try:
            torch.manual_seed(model.recipe.training.seed)
            _add_senses(fresh, model)
            yield attrs.evolve(bench, model=fresh)
        finally:
            fresh.detach()


def _add_senses(fresh: SafeModel, model: SafeModel) -> None:
    assert model.recipe is not None
    for name, spec in model.recipe.modalities.items():
        if name not in model.modalities:
            continue
        encoder, facts = model.modality(name).encoder, fresh.facts()
        make_projector: type[Any] = registry.projectors.load(spec.projector.use)
        make_fusion: type[Any] = registry.fusion_adapters.load(spec.fusion.use)
        fresh.add_modality(
            name,
            encoder=encoder,
            projector=make_projector(encoder.dim, facts.hidden_size, **spec.projector.options),
            fusion=make_fusion(facts, **spec.fusion.options),
        )
