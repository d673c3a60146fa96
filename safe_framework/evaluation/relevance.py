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

from safe_framework.data.examples import Example
from safe_framework.evaluation.answers import (
    answer,
    batched_apart,
    eval_mode,
    example_inputs,
    question_key,
    without_modality,
)
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
def opens(
    model: SafeModel, modality: str, examples: Sequence[Example], *, batch_size: int
) -> list[bool]:
    """Whether a modality's head opens its gate on each example.

    Where it does not, a call is the base's bit for bit (law L9). Where it does, the call is that
    of gate 1 but for rounding, since its last position is run again with the modality on. So
    answers are known without another call, where those of both gates are. A question that several
    examples ask is read once.

    Args:
        model: with the head, which reads the base's state alone, whatever the sample.
        modality: whose head decides.
        examples: with samples or without.
        batch_size: of them at a time.
    """
    alone = without_modality(examples, modality)
    distinct = list({question_key(example): example for example in alone}.values())
    found = dict[tuple[object, ...], bool]()
    with eval_mode(model):
        for rows in batched_apart(distinct, batch_size):
            chosen = opened_rows(model, modality, example_inputs(model, rows))
            found |= zip(map(question_key, rows), chosen, strict=True)
    return [found[question_key(example)] for example in alone]


@torch.no_grad()
def opened_rows(model: SafeModel, modality: str, batch: Mapping[str, Any]) -> list[bool]:
    """On which rows of processed texts a modality's head, which it must have, opens its gate."""
    head = model.modality(modality).relevance
    assert head is not None
    read = model.prompt_states(batch, [head.layer], head.columns)[head.layer]
    found: list[bool] = head.opens(head(read)).tolist()
    return found


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
    heard = opens(model, modality, questions, batch_size=batch_size)
    with eval_mode(model):
        base = answer(model, questions, label="whole answers", progress=progress, **asking)
        beside = [
            attrs.evolve(question, samples=sample)
            for kind in pools
            for question, sample in zip(questions, draw(kind, len(questions)), strict=True)
        ]
        label = "whole answers beside samples"
        given = iter(
            answer(model, beside, gate={modality: 1.0}, label=label, progress=progress, **asking)
        )
    for kind in pools:
        changed = [next(given) != without for without in base]
        both = [a and b for a, b in zip(changed, heard, strict=True)]
        found[kind] = Influence(Counted.of(changed), Counted.of(both))
    return found


def gain_kept(base: Sequence[float], opened: Sequence[float], heard: Sequence[bool]) -> GainKept:
    """What the gate that decides keeps of the gain, in means over the same questions.

    Args:
        base: how right each answer is without the modality.
        opened: the same at gate 1.
        heard: where the gate opens.
    """
    rows = list(zip(base, opened, heard, strict=True))
    auto = [one if hears else without for without, one, hears in rows]
    plain, always, decided = (sum(some) / len(rows) for some in (base, opened, auto))
    return GainKept(plain, always, decided, len(rows))


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
