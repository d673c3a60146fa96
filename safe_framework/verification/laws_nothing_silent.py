"""L7: what cannot be heard is refused, instead of being answered as if nothing had been given."""

from __future__ import annotations

from safe_framework.core.modality import PRESENT
from safe_framework.verification.bench import Bench
from safe_framework.verification.calls import FORWARD
from safe_framework.verification.certificate import Law, judged

_NAME = "Nothing silent"


def nothing_silent(bench: Bench) -> Law:
    """The verdict on L7, as far as one call can show it."""
    inputs = FORWARD.inputs(bench.batches)
    name = next(iter(bench.model.modalities))
    samples = dict(bench.samples)
    short = {key: value[:-1] for key, value in samples.items()}
    unknown = {f"un{name}__{PRESENT}": samples[f"{name}__{PRESENT}"]}
    with bench.bared():
        bypassed = bench.run(FORWARD, inputs | samples | {"gate": 1.0})
    seen = {
        "a fused layer was bypassed": bypassed,
        "one sample was missing": bench.run(FORWARD, inputs | short),
        "a sample came for a sense that is not there": bench.run(FORWARD, inputs | unknown),
    }
    findings = [f"{what}, and the call answered" for what, out in seen.items() if not out.error]
    return judged("L7", _NAME, f"{len(seen)} calls that cannot be heard are refused", findings)
