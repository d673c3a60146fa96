"""A sense that is on in one thread is not heard in another, at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from safe_framework.verification.bench import Bench
from safe_framework.verification.bench_probes import loud
from safe_framework.verification.calls import FORWARD
from safe_framework.verification.certificate import Law, judged
from safe_framework.verification.outcome import Outcome
from safe_framework.verification.outcome_compare import difference

_NAME = "Threads"
_PATIENCE = 60.0  # seconds


def threads_apart(bench: Bench) -> Law:
    """Whether an off call is the base's while another thread is held inside an on call."""
    expected = bench.bare(FORWARD)
    with loud(bench.model), _held_inside(bench) as holder:
        seen = {way: bench.off(FORWARD, way) for way in ("not given", "off()")}
        direct = bench.run_base(FORWARD)
    found = {way: difference(out, expected) for way, out in seen.items()}
    found["the base called directly"] = difference(direct, expected)
    findings = [
        f"{way}, while another thread hears: {text}; the sense leaked between threads"
        for way, text in found.items()
        if text
    ]
    if holder.outcome.error:
        findings.append(f"the thread that hears raised {holder.outcome.error}")
    elif not difference(holder.outcome, expected):
        findings.append("the thread that hears heard nothing")
    return judged("", _NAME, "off is the base while another thread hears", findings)


class _Holder:
    """A thread that makes an on call and waits inside it, in the last hooked layer."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.outcome = bench, Outcome({}, "it never ended")
        self.inside, self.leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._call, daemon=True)

    def __call__(self, module: nn.Module, args: Any) -> None:
        if threading.current_thread() is self.thread:
            self.inside.set()
            self.leave.wait(_PATIENCE)

    def _call(self) -> None:
        try:
            self.outcome = self.bench.on(FORWARD)
        finally:
            self.inside.set()


@contextmanager
def _held_inside(bench: Bench) -> Iterator[_Holder]:
    holder = _Holder(bench)
    layers = bench.model.stack.of(bench.model.base)
    fused = max(max(bench.model.modality(n).fusion.layers) for n in bench.model.modalities)
    handle = layers[fused].register_forward_pre_hook(holder)
    try:
        holder.thread.start()
        holder.inside.wait(_PATIENCE)
        yield holder
    finally:
        holder.leave.set()
        holder.thread.join(_PATIENCE)
        handle.remove()
