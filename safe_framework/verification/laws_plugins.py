"""L3: no plugin runs while its modality is off, and none misbehaves while it is on."""

from __future__ import annotations

from safe_framework.verification.bench import Bench
from safe_framework.verification.bench_probes import counted
from safe_framework.verification.calls import FORWARD, GREEDY, WAYS
from safe_framework.verification.certificate import Law, judged

_NAME = "Plugins propose"
_HEARD_FIRST = ("every token masked",)  # which only the projector can tell


def plugins_propose(bench: Bench) -> Law:
    """The verdict on L3."""
    findings = []
    calls = bench.possible(FORWARD, GREEDY)
    for call in calls:
        for way in WAYS:
            with counted(bench.model) as ran:
                bench.off(call, way)
            early = [path for path in ran if way not in _HEARD_FIRST or ".fusion" in path]
            if early:
                findings.append(f"{call.name}, {way}: module `{early[0]}` ran")
        with counted(bench.model) as ran:
            on = bench.on(call)
        if on.error:
            findings.append(f"{call.name} with the senses on raises {on.error}")
        if silent := [name for name in bench.model.modalities if f"{name}.fusion" not in ran]:
            findings.append(f"{call.name} with the senses on never called `{silent[0]}`")
    detail = f"no module of a sense ran in {len(calls) * len(WAYS)} calls"
    return judged("L3", _NAME, detail, findings)
