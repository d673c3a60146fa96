"""With the senses on, decoding with a cache gives the tokens of decoding without one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from safe_framework.verification.bench import Bench
from safe_framework.verification.calls import GREEDY, UNCACHED
from safe_framework.verification.certificate import Law, judged, not_applicable
from safe_framework.verification.outcome import Outcome
from safe_framework.verification.outcome_compare import difference

_NAME = "Cached decoding agrees"
_OURS = ("PluginError", "InjectionError", "SafeError", "SampleError")


def cached_decoding_agrees(bench: Bench) -> Law:
    """Whether both decode the same tokens, where the base alone does, but for rounding."""
    base = bench.bare(GREEDY), bench.bare(UNCACHED)
    if base[0].error:
        return not_applicable("", _NAME, f"the base does not decode: {base[0].error}")
    if found := _tokens_differ(*base) or _logits_differ(*base):
        return not_applicable("", _NAME, f"the base alone does not agree: {found}")
    cached, uncached = bench.on(GREEDY), bench.on(UNCACHED)
    if uncached.error and not (cached.error or uncached.error.startswith(_OURS)):
        why = f"the base refuses to read again what it wrote: {uncached.error}"
        return not_applicable("", _NAME, why)  # such as the token of an image
    found = _tokens_differ(cached, uncached)
    if found and (gap := _tie(cached)):
        return not_applicable("", _NAME, f"{found}, but two tokens are nearly tied: {gap}")
    detail = "the same tokens with the senses on, with a cache and without"
    return judged("", _NAME, detail, [found] if found else [])


def _tokens_differ(cached: Outcome, uncached: Outcome) -> str:
    name = "sequences"
    return difference(cached.part(name), uncached.part(name), "without a cache it")


def _logits_differ(cached: Outcome, uncached: Outcome) -> str:
    """How far the logits are apart, if it is more than rounding."""
    pairs = zip(_steps(cached), _steps(uncached), strict=True)
    parts = [((a - b).abs().max() / a.abs().max()).item() for a, b in pairs]
    farthest = max(parts, default=0.0)
    return f"logits {farthest:.1e} apart" if farthest > _rounding(cached) else ""


def _tie(seen: Outcome) -> str:
    """The least distance of the best two tokens, if rounding could decide between them."""
    steps = _steps(seen)
    gaps = [(step.topk(2).values.diff().abs().min() / step.abs().max()).item() for step in steps]
    least = min(gaps, default=1.0)
    return f"{least:.1e} of the largest logit" if least < _rounding(seen) else ""


def _steps(seen: Outcome) -> list[Tensor]:
    return [logits.double() for logits in seen.part("logits.").leaves.values()]


def _rounding(seen: Outcome) -> float:
    """What rounding may add up to in a deep model: the root of its smallest step."""
    kinds = [logits.dtype for logits in seen.part("logits.").leaves.values()]
    return math.sqrt(max((torch.finfo(kind).eps for kind in kinds), default=0.0))
