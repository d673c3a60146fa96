"""What a gate that opens by itself does: where it opens, what it keeps, and what it costs.

A call is influenced if an irrelevant sample changes the answer that is given without it: the
influence rate is the share of such calls (arXiv:2510.00626).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.relevance import AUTO
from safe_framework.data.examples import Example
from safe_framework.evaluation.answers import answer, eval_mode, without_modality
from safe_framework.evaluation.metrics import exact_match
from safe_framework.evaluation.relevance_risk import Counted, Threshold, calls_needed, upper_bound
from safe_framework.evaluation.results import WHOLE_ANSWER, GainKept, Influence
from safe_framework.evaluation.retention import DistractorDraw, distractor_pools
from safe_framework.interfaces.samples import Sample
from safe_framework.utils.formatting import percent
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.versions import FRAMEWORK_VERSION

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel


def counted_by_kind(kinds: Sequence[str], scores: Tensor, threshold: float) -> dict[str, Counted]:
    """How many calls of each kind score above a threshold.

    Args:
        kinds: of each call.
        scores: of the calls, (calls,).
        threshold: above which a gate opens.
    """
    opened = (scores > threshold).tolist()
    return {
        kind: Counted.of([one for one, own in zip(opened, kinds, strict=True) if own == kind])
        for kind in dict.fromkeys(kinds)
    }


@torch.no_grad()
def influence(
    model: SafeModel,
    modality: str,
    questions: Sequence[Example],
    examples: Sequence[Example],
    foreign: Sequence[Sample],
    *,
    batch_size: int,
    seed: int,
    progress: ProgressCallback = no_progress,
) -> dict[str, Influence]:
    """How many whole answers to irrelevant questions a sample of each kind changes.

    Args:
        model: with a relevance head.
        modality: whose samples are put beside them.
        questions: that no sample answers.
        examples: of whose samples irrelevant ones are made.
        foreign: more irrelevant samples; may be none.
        batch_size: questions at a time.
        seed: of the samples.
        progress: called after every batch.
    """
    pools = distractor_pools(modality, examples, foreign)
    draw, found = DistractorDraw(modality, pools, seed), dict[str, Influence]()
    asking: dict[str, Any] = {"max_new_tokens": WHOLE_ANSWER, "batch_size": batch_size}
    with eval_mode(model):
        base = answer(model, questions, label="whole answers", progress=progress, **asking)
        for kind in pools:
            beside = [
                attrs.evolve(question, samples=sample)
                for question, sample in zip(questions, draw(kind, len(questions)), strict=True)
            ]
            changed = {}
            for gate in (1.0, AUTO):
                label = f"whole answers beside {kind}, gate {gate}"
                given = answer(
                    model, beside, gate={modality: gate}, label=label, progress=progress, **asking
                )
                changed[gate] = Counted.of([a != b for a, b in zip(given, base, strict=True)])
            found[kind] = Influence(changed[1.0], changed[AUTO])
    return found


@torch.no_grad()
def gain_kept(
    model: SafeModel,
    modality: str,
    test: Sequence[Example],
    right: Sequence[bool],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: ProgressCallback = no_progress,
) -> GainKept:
    """What the gate that decides keeps of the gain on test rows.

    Args:
        model: with a relevance head.
        modality: whose gate it is.
        test: rows with a sample of it.
        right: whether each was answered right at gate 1.
        max_new_tokens: limit of an answer's length.
        batch_size: rows at a time.
        progress: called after every batch.
    """
    expected = [example.judged(example.answer) for example in test]
    asking: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    with eval_mode(model):
        given = answer(
            model, test, gate={modality: AUTO}, label="answers, gate auto", progress=progress,
            **asking,
        )  # fmt: skip
        plain = answer(model, without_modality(test, modality), **asking)
    base, auto = (
        float(exact_match([e.judged(a) for e, a in zip(test, some, strict=True)], expected).mean())
        for some in (plain, given)
    )
    return GainKept(base, sum(right) / len(right), auto, len(test))


# What a calibration showed


def statement_of(
    found: Threshold,
    calibrated: Mapping[str, Counted],
    checked: Mapping[str, Counted],
    opens: Mapping[str, Counted],
    *,
    sense: str,
    risk: float,
    confidence: float,
    source: str,
    digest: str,
) -> dict[str, Any]:
    """What an adapter and its certificate say of a calibrated gate, for JSON.

    Args:
        found: the threshold, with the risk that was shown of each kind.
        calibrated: how often it opened on the calls of the calibration, by kind.
        checked: the same on calls that were kept from training and calibration; may be empty.
        opens: how often it opened when it should, by kind of wording; may be empty.
        sense: the modality's name.
        risk: that was asked for.
        confidence: with which that was to hold.
        source: of the irrelevant calls, in words.
        digest: of their texts.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        mapie = f", MAPIE {version('MAPIE')}"
    except PackageNotFoundError:  # it was replaced by a stand-in
        mapie = ""
    shown = max(found.risks.values())
    return {
        "sentence": _sentence(sense, shown, confidence, calibrated, opens, source),
        "risk": risk,
        "shown": dict(found.risks),
        "confidence": confidence,
        "threshold": found.value,
        "method": f"Learn then Test (arXiv:2110.01052), fixed sequence, binomial tail{mapie}",
        "false_opens": {
            kind: {
                "count": one.count,
                "calls": one.calls,
                "at_most": upper_bound(one.count, one.calls, confidence),
            }
            for kind, one in calibrated.items()
        },
        "checked": {kind: one.told() for kind, one in checked.items()},
        "opens": {kind: one.told() for kind, one in opens.items()},
        "source": source,
        "digest": digest,
        "limits": (
            f"It holds for calls like those of {source}, in the prompt that the adapter was "
            "trained with. For other languages, topics and prompts calibrate again on your own: "
            "`safe calibrate ADAPTER --data mine.jsonl`."
        ),
        "framework": FRAMEWORK_VERSION,
    }


def _sentence(
    sense: str,
    shown: float,
    confidence: float,
    calibrated: Mapping[str, Counted],
    opens: Mapping[str, Counted],
    source: str,
) -> str:
    calls = sum(one.calls for one in calibrated.values())
    mistakes = sum(one.count for one in calibrated.values())
    power = "; ".join(
        f"asked about {sense} in {kind}, it listens in {percent(one.share)} of calls "
        f"({percent(one.low)} to {percent(one.high)})"
        for kind, one in opens.items()
    )
    return (
        f'With `gate = "auto"`, a call that is not about {sense} is answered exactly as by the '
        f"base model, bit for bit, in at least {percent(1 - shown)} of calls of each kind "
        f"({percent(confidence)} confidence; the gate opened on {mistakes} of {calls} such calls "
        f"from {source}){f'; {power}' if power else ''}."
    )


def shortage(calls: Mapping[str, int], risk: float, confidence: float) -> str:
    """Which kinds have too few calls to show a risk, and how many they need; empty if none.

    >>> shortage({"mine": 120}, 0.01, 0.95)
    '`mine` has 120 calls, of 299 that show a risk of 1.0 % at 95.0 % confidence'
    """
    wanted = calls_needed(risk, confidence)
    few = {kind: count for kind, count in calls.items() if count < wanted}
    if not few:
        return ""
    listed = ", ".join(f"`{kind}` has {count} calls" for kind, count in few.items())
    return (
        f"{listed}, of {wanted} that show a risk of {percent(risk)} at {percent(confidence)} "
        "confidence"
    )
