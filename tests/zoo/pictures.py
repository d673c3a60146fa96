"""Whether a picture reaches the answer: asked of the zoo's types, and of models of recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safe_framework.core.model import SafeModel
from safe_framework.verification.bench import Bench, frozen_state
from safe_framework.verification.calls import FORWARD, GREEDY, Call
from safe_framework.verification.outcome import Outcome, difference

WAYS = ("not given", "gate 0", "absent on each row")
"""To be off: without a sample, with one, and with a row's place for one."""


def problems(model: SafeModel, first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a picture from reaching the answer, or the base's own answer from being given.

    Another picture must change the logits with the sense on, off and absent. Off and absent must
    give bit for bit what the base gives for that picture: logits and greedy tokens.

    Args:
        model: with a sense that is heard.
        first: keyword arguments of a call of the base, and of its samples if it is to have some
            of its own.
        other: the same with another picture.
    """
    with frozen_state(model):
        benches = [Bench.of(model, first), Bench.of(model, other)]
        yield from _unmoved("of the base", [bench.run_base(FORWARD) for bench in benches])
        yield from _unmoved("with the sense on", [bench.run_on(FORWARD) for bench in benches])
        for way in WAYS:
            off = [bench.run_off(FORWARD, way) for bench in benches]
            yield from _unmoved(f"with the sense off ({way})", off)
            for bench in benches:
                yield from _not_the_bases(bench, FORWARD, way)
                yield from _not_the_bases(bench, GREEDY, way)


def _unmoved(when: str, outcomes: list[Outcome]) -> Iterator[str]:
    if errors := [outcome.error for outcome in outcomes if outcome.error]:
        yield f"{when}: {errors[0].splitlines()[0]}"
        return
    first, other = (outcome.starting_with("logits") for outcome in outcomes)
    if not first.leaves or not difference(first, other):
        yield f"another picture gives the same logits {when}"


def _not_the_bases(bench: Bench, call: Call, way: str) -> Iterator[str]:
    base = bench.run_base(call)
    if found := difference(bench.run_off(call, way), base):
        yield f"off ({way}) is not the base, {call.name}: {found}"
