"""With the senses on, decoding with a cache gives the tokens of decoding without one."""

from __future__ import annotations

from safe_framework.certificate.bench import Bench
from safe_framework.certificate.calls import GREEDY, UNCACHED
from safe_framework.certificate.compare import difference
from safe_framework.certificate.outcome import Outcome
from safe_framework.certificate.result import Law, judged, not_applicable

_NAME = "Cached decoding agrees"


def cached_decoding_agrees(bench: Bench) -> Law:
    """Whether both decode the same tokens, where the base alone does."""
    base = _tokens(bench.bare(GREEDY)), _tokens(bench.bare(UNCACHED))
    if base[0].error:
        return not_applicable("", _NAME, f"the base does not decode: {base[0].error}")
    if found := difference(*base, "without a cache it"):
        return not_applicable("", _NAME, f"the base alone does not agree: {found}")
    cached, uncached = bench.on(GREEDY), bench.on(UNCACHED)
    found = difference(_tokens(cached), _tokens(uncached), "without a cache it")
    if found and (gap := _tie(cached)):
        return not_applicable("", _NAME, f"{found}, but two tokens are nearly tied: {gap}")
    detail = "the same tokens with the senses on, with a cache and without"
    return judged("", _NAME, detail, [found] if found else [])


def _tokens(seen: Outcome) -> Outcome:
    return seen.part("sequences")


def _tie(seen: Outcome, relative: float = 1e-4) -> str:
    """The least distance of the best two tokens, if rounding could decide between them."""
    steps = [leaf.float() for path, leaf in seen.leaves.items() if path.startswith("logits.")]
    gaps = [(step.topk(2).values.diff().abs().min() / step.abs().max()).item() for step in steps]
    least = min(gaps, default=1.0)
    return f"{least:.1e} of the largest logit" if least < relative else ""
