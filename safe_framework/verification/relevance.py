"""L9: where the gate of ``auto`` stays closed, a row is the base's bit for bit.

Asked of a bench while the adapters answer with noise, with the threshold of each relevance head
moved so that it opens on no row, on some and on every one. How often a head is right is no law:
what ``safe calibrate`` measured of it stands beside the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
from torch import Tensor

from safe_framework.core.layer_hooks import registered
from safe_framework.core.relevance import AUTO, RelevanceHead
from safe_framework.verification.bench import Bench, noisy_adapters
from safe_framework.verification.calls import CALLS, Call, first_row
from safe_framework.verification.certificate import Law, law_result, not_applicable
from safe_framework.verification.laws import where_rows_mix
from safe_framework.verification.outcome import Outcome, difference

LAW = ("L9", "Irrelevant is absent")
_NAMES = (
    "forward", "forward, padded left", "forward, padded right", "hidden states", "greedy",
    "greedy, padded left", "greedy without a cache", "sampled", "2 beams", "static cache",
    "prefill in chunks", "assisted by its own prompt",
)  # fmt: skip
_CALLS = tuple(call for call in CALLS if call.name in _NAMES)


def irrelevant_is_absent(bench: Bench) -> Law:
    """The verdict on L9."""
    model = bench.model
    heads = {name: head for name in model.modalities if (head := model.modality(name).relevance)}
    if not heads:
        return not_applicable(*LAW, "no sense has a relevance head, so that none decides")
    mixed = bench.rows > 1 and not model.split_rows and bool(where_rows_mix(bench))
    seen = _Compared()
    with noisy_adapters(model):
        calls = bench.supported(*_CALLS)
        findings = [found for call in calls for found in _of_call(bench, call, heads, mixed, seen)]
    apart = ", of the base none but whole batches, since it computes rows together" * mixed
    told = "; ".join(f"`{name}` {calibrated(head)}" for name, head in heads.items())
    detail = f"{seen.closed} closed rows of {len(calls)} calls{apart}; {told}"
    return law_result(*LAW, detail, findings)


def calibrated(head: RelevanceHead) -> str:
    """What a calibration showed of a head, in the words that it left."""
    if head.statement is None:
        return "is not calibrated: nothing is known of how often it opens"
    sentence = head.statement.get("sentence")
    return str(sentence) if sentence else "is calibrated"


@attrs.define(eq=False)
class _Compared:
    """How much was compared.

    Attributes:
        closed: rows whose gates stayed closed.
    """

    closed: int = 0


def _of_call(
    bench: Bench, call: Call, heads: Mapping[str, RelevanceHead], mixed: bool, seen: _Compared
) -> Iterator[str]:
    """What is wrong with one kind of call."""
    base = bench.run_unwrapped(call)
    with _thresholds(heads, -math.inf), _scores(heads) as scores:
        found, gates = _run(bench, call, heads)
    if found.error:
        yield f"{bench.name(call)}, open: it raises {found.error}"
        return
    for name in heads:
        if not bool(gates[name].all()):
            yield f"{bench.name(call)}: `{name}` stays closed at any score"
    for threshold in (math.inf, *([] if mixed else _between(scores))):
        with _thresholds(heads, threshold):
            found, gates = _run(bench, call, heads)
        closed = [row for row in range(_rows(bench, call)) if not _any_open(gates, row)]
        seen.closed += len(closed)
        if differing := _closed_difference(bench, call, found, base, closed):
            yield f"{bench.name(call)}, {len(closed)} closed rows: {differing}"


def _run(
    bench: Bench, call: Call, heads: Mapping[str, RelevanceHead]
) -> tuple[Outcome, dict[str, Tensor]]:
    """What a call gives in which the heads decide, and what they decided."""
    model = bench.model
    samples = first_row(bench.samples) if call.single_row else dict(bench.samples)
    gate: dict[str, Any] = {name: AUTO if name in heads else 0.0 for name in model.modalities}
    found = bench.run(call, bench.inputs(call) | samples | {"gate": gate})
    return found, model.last_gates


def _closed_difference(
    bench: Bench, call: Call, found: Outcome, base: Outcome, closed: Sequence[int]
) -> str:
    """Where the closed rows are not the base's; empty if nowhere."""
    rows = _rows(bench, call)
    if len(closed) == rows:
        return difference(found, base)
    # A call whose rows ran apart returns no cache, and rows may end at another length.
    shared = found.leaves.keys() & base.leaves.keys()
    parts = (
        Outcome({path: given.leaves[path] for path in shared}, given.error)
        for given in (found, base)
    )
    mine, silent = (_of_rows(part, closed, rows) for part in parts)
    return difference(mine, silent)


def _of_rows(outcome: Outcome, chosen: Sequence[int], rows: int) -> Outcome:
    """Of every tensor with copies of each row side by side, those of some rows."""
    kept = {}
    for path, leaf in outcome.leaves.items():
        if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) and len(leaf) % rows == 0:
            each = leaf.reshape(rows, -1, *leaf.shape[1:])  # (rows, copies, ...)
            kept[path] = each[list(chosen)]
    return Outcome(kept, outcome.error)


def _rows(bench: Bench, call: Call) -> int:
    return 1 if call.single_row else bench.rows


def _any_open(gates: Mapping[str, Tensor], row: int) -> bool:
    return any(bool(each[row]) for each in gates.values())


@contextmanager
def _thresholds(heads: Mapping[str, RelevanceHead], value: float) -> Iterator[None]:
    """Within the block, every head opens above this score."""
    kept = {name: head.threshold for name, head in heads.items()}
    for head in heads.values():
        head.threshold = value
    try:
        yield
    finally:
        for name, head in heads.items():
            head.threshold = kept[name]


@contextmanager
def _scores(heads: Mapping[str, RelevanceHead]) -> Iterator[list[float]]:
    """Collects the scores that the heads give."""
    found: list[float] = []
    hooks = (
        head.register_forward_hook(lambda module, args, score: found.extend(score.tolist()))
        for head in heads.values()
    )
    with registered(*hooks):
        yield found


def _between(scores: Sequence[float]) -> list[float]:
    """A threshold between the least and the greatest score, if they differ."""
    low, high = min(scores), max(scores)
    middle = (low + high) / 2
    return [middle] if low < middle < high else []
