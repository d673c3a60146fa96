"""L4: in a mixed batch, a row without a sample keeps the base's bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from safe_framework.core.modality import PRESENT
from safe_framework.verification.bench import Bench
from safe_framework.verification.bench_probes import loud
from safe_framework.verification.calls import FORWARD, GREEDY, Call
from safe_framework.verification.calls_inputs import with_other_words
from safe_framework.verification.certificate import Law, judged, not_applicable
from safe_framework.verification.outcome import Outcome, outcome
from safe_framework.verification.outcome_compare import difference

_NAME = "Rows"
_CALLS = (FORWARD, Call("forward, padded left", "forward", "left"), GREEDY)


def rows_apart(bench: Bench) -> Law:
    """The verdict on L4, which only a base that computes rows independently can have."""
    if bench.rows < 2:
        return not_applicable("L4", _NAME, "the inputs have a single row")
    if mixes := _base_mixes(bench):
        if not bench.model.split_rows:
            return not_applicable("L4", _NAME, f"the base computes rows together: {mixes}")
        detail = "the base computes rows together; rows without a sample ran apart"
    else:
        detail = "the base computes rows apart"
    with loud(bench.model):
        calls = bench.possible(*_CALLS)
        findings = [found for call in calls for found in _mixed(bench, call)]
    return judged("L4", _NAME, f"{detail}; {3 * len(calls)} mixed batches", findings)


def _base_mixes(bench: Bench) -> str:
    """Where a row of the base changes with the words of another row; empty if nowhere."""
    last = bench.rows - 1
    for call in bench.possible(*_CALLS):
        before = bench.bare(call)
        for other, kept in ((last, 0), (0, last)):
            batch = bench.batches[call.batch]
            changed = with_other_words(bench.model.base, batch, other)
            with bench.bared():
                inputs = call.inputs({call.batch: changed})
                after = outcome(bench.base_method(call), inputs, call.mode)
            if found := difference(_row(bench, after, kept), _row(bench, before, kept), "alone it"):
                return f"in {call.name}, with other words in row {other}, {found}"
    return ""


def _row(bench: Bench, seen: Outcome, row: int) -> Outcome:
    return seen.rows([row], bench.rows)


def _mixed(bench: Bench, call: Call) -> Iterator[str]:
    """What is wrong where only the last row has a sample."""
    base, last = bench.bare(call), bench.rows - 1
    present = torch.arange(bench.rows) == last
    for way, changes in _changes(bench, present).items():
        seen = bench.on(call, **changes)
        for row in range(last):
            if found := _row_difference(bench, seen, base, row):
                yield f"{call.name}, {way}: row {row} has no sample, but {found}"
        if not _row_difference(bench, seen, base, last):
            yield f"{call.name}, {way}: row {last} has a sample and did not change"


def _row_difference(bench: Bench, seen: Outcome, base: Outcome, row: int) -> str:
    """Of what both give: a call whose rows ran apart returns no cache."""
    shared = seen.leaves.keys() & base.leaves.keys()
    mine, silent = (
        _row(bench, Outcome({path: given.leaves[path] for path in shared}, given.error), row)
        for given in (seen, base)
    )
    return difference(mine, silent)


def _changes(bench: Bench, present: Tensor) -> dict[str, dict[str, Any]]:
    names = list(bench.model.modalities)
    device = bench.samples[f"{names[0]}__{PRESENT}"].device
    here = present.to(device)
    absent = {f"{name}__{PRESENT}": here for name in names}
    masked = {
        key: value & here[:, None]
        for key, value in bench.samples.items()
        if value.dtype == torch.bool and value.ndim == 2
    }
    return {
        "absent": absent,
        "gate 0": {"gate": here.float()},
        **({"every token masked": masked} if masked else {}),
    }
