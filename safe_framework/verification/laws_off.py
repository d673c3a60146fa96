"""L2: with its senses off, the model gives the base's bits by the base's operations."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from safe_framework.verification.bench import Bench
from safe_framework.verification.calls import (
    FORWARD,
    GREEDY,
    LOOKS_AT_ROWS,
    WAYS,
    Call,
    Level,
    chosen,
)
from safe_framework.verification.certificate import Comparison, Law, judged, not_applicable
from safe_framework.verification.outcome import Outcome
from safe_framework.verification.outcome_compare import difference
from safe_framework.verification.outcome_trace import (
    Operation,
    digest,
    from_the_base_on,
    trace_difference,
    traced,
)

_NAME = "Off is the base"


def compared(
    bench: Bench, level: Level, advance: Callable[[str], None]
) -> tuple[Law, list[Comparison]]:
    """The verdict on L2, and each call that was compared bit by bit."""
    made: list[Comparison] = []
    unsteady: list[str] = []
    for call, ways in chosen(level):
        expected = bench.bare(call)
        here = [_compare(bench, call, way, expected) for way in ways]
        if not all(c.same for c in here) and difference(bench.bare(call), expected):
            unsteady.append(call.name)
        else:
            made += here
        advance(call.name)
    if not made:
        return not_applicable("L2", _NAME, "the base does not repeat itself in any call"), made
    findings = [f"{c.call}, {c.off}: {c.note}" for c in made if not c.same]
    return judged("L2", _NAME, _detail(made, unsteady), findings), made


def _compare(bench: Bench, call: Call, way: str, expected: Outcome) -> Comparison:
    found = difference(bench.off(call, way), expected)
    note = found or (f"both raise {expected.error}" if expected.error else "")
    return Comparison(call.name, way, call.mode, not found, note)


def _detail(made: list[Comparison], unsteady: list[str]) -> str:
    parts = [f"{len(made)} calls bit for bit"]
    if refused := sorted({c.call for c in made if c.same and c.note}):
        parts.append(f"the base itself refuses {', '.join(refused)}")
    if unsteady:
        parts.append(f"the base does not repeat itself in {', '.join(unsteady)}")
    return "; ".join(parts)


def same_operations(bench: Bench, made: list[Comparison]) -> Law:
    """Whether off also runs what the base runs; enters the traces into ``made``."""
    findings, total = [], 0
    calls = bench.possible(FORWARD, GREEDY)
    for call in calls:
        expected = _bare_trace(bench, call)
        total += len(expected)
        for way in WAYS:
            with bench.switched_off(call, way) as inputs:
                _, seen = traced(bench.method(call), inputs, bench.model.base)
            if way in LOOKS_AT_ROWS:  # before the base is called
                seen = from_the_base_on(seen, expected)
            if found := trace_difference(seen, expected):
                findings.append(f"{call.name}, {way}: {found}")
            else:
                _enter(made, call, way, seen)
    names = " and ".join(call.name for call in calls)
    detail = f"{total:,} operations of {names}, in {len(WAYS)} ways to be off"
    return judged("L2", "Off runs the base's operations", detail, findings)


def _bare_trace(bench: Bench, call: Call) -> list[Operation]:
    with bench.bared():
        inputs = call.inputs(bench.batches)
        return traced(bench.base_method(call), inputs, bench.model.base)[1]


def _enter(made: list[Comparison], call: Call, way: str, seen: list[Operation]) -> None:
    for place, comparison in enumerate(made):
        if (comparison.call, comparison.off) == (call.name, way):
            made[place] = attrs.evolve(comparison, operations=len(seen), trace=digest(seen))
