"""L6: with some senses off, the model is the one that has only the others."""

from __future__ import annotations

from itertools import combinations

from safe_framework.verification.bench import Bench
from safe_framework.verification.bench_probes import loud
from safe_framework.verification.calls import FORWARD, GREEDY
from safe_framework.verification.certificate import Law, judged, not_applicable
from safe_framework.verification.outcome_compare import difference

_NAME = "Composition"


def senses_compose(bench: Bench) -> Law:
    """The verdict on L6."""
    names = list(bench.model.modalities)
    if len(names) < 2:
        return not_applicable("L6", _NAME, "the model has one sense")
    subsets = [off for count in range(1, len(names)) for off in combinations(names, count)]
    with loud(bench.model):
        findings = [found for off in subsets if (found := _alone(bench, off))]
    return judged("L6", _NAME, f"each of {len(subsets)} choices of senses alone", findings)


def _alone(bench: Bench, off: tuple[str, ...]) -> str:
    """How the model with these senses off differs from one that lacks them."""
    absent = {k: v for k, v in bench.samples.items() if k.partition("__")[0] not in off}
    for call in bench.possible(FORWARD, GREEDY):
        inputs = call.inputs(bench.batches) | {"gate": 1.0}
        with bench.without(*off):
            lacking = bench.run(call, inputs | absent)
        with bench.model.off(*off):
            seen = bench.run(call, inputs | dict(bench.samples))
        if found := difference(seen, lacking, "the model without it"):
            return f"{call.name} with {' and '.join(off)} off: {found}"
    return ""
