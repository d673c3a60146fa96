"""A sense that is on reaches the outputs: what holds when off is not held by deafness."""

from __future__ import annotations

from safe_framework.verification.bench import Bench
from safe_framework.verification.bench_probes import loud, moved
from safe_framework.verification.calls import FORWARD, GREEDY
from safe_framework.verification.certificate import Law, judged
from safe_framework.verification.outcome_compare import difference

_NAME = "On is heard"


def on_is_heard(bench: Bench) -> Law:
    """Whether made-up deltas reach every row, and the trained ones the outputs."""
    findings = []
    for call in bench.possible(FORWARD, GREEDY):
        silent = bench.bare(call)
        with loud(bench.model):
            seen = bench.on(call)
        if seen.error:
            findings.append(f"{call.name} with the senses on raises {seen.error}")
            continue
        deaf = [
            row
            for row in range(bench.rows)
            if not difference(seen.rows([row], bench.rows), silent.rows([row], bench.rows))
        ]
        findings += [f"{call.name}: a made-up delta did not reach row {row}" for row in deaf]
    with moved(bench.model) as trained:
        seen = bench.on(FORWARD)
    if trained and not seen.error and not difference(seen, bench.bare(FORWARD)):
        findings.append(f"the delta of {' and '.join(sorted(trained))} did not reach the outputs")
    own = " and its own" if trained else "; its own is still zero"
    return judged("", _NAME, f"made-up deltas reach every row{own}", findings)
