"""How far Stage B took the base: the changed one without a sample, beside the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.base_change import WAIVED, original
from safe_framework.evaluation.answers import Progress, inputs, silent
from safe_framework.evaluation.metrics import Estimate, agrees, bootstrap, kl_per_position
from safe_framework.utils.formatting import percent
from safe_framework.utils.sequences import batches
from safe_framework.utils.tensors import same_bits

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel


# What a result says of a base that Stage B changed.


HELD_OUT, SHIPPED, MADE_UP = "held-out texts", "texts that ship with the framework", "made-up words"


@attrs.frozen
class Drift:
    """The changed base without a sample, against the original, at the positions of some texts.

    Attributes:
        agreement: share of positions where both rank the same next token first.
        kl: mean KL(original || changed) of a position, in nats.
        largest: the largest difference of two logits.
        positions: how many were compared.
        texts: how many there were.
        source: where they come from.
        off_identical: whether ``off()`` gave the original's logits bit for bit.
    """

    agreement: Estimate
    kl: Estimate
    largest: float
    positions: int
    texts: int
    source: str
    off_identical: bool


@attrs.frozen
class BaseChanged:
    """What every result of a model with a changed base says of it.

    Attributes:
        method: of ``[stage_b]``.
        described: what was changed, for people.
        parameters: how many numbers of the base, or beside it, were trained.
        laws_given_up: keys of docs/laws.md.
        off_is_the_original_base: whether ``off()`` is meant to be.
        drift: how far the base was taken.
    """

    method: str
    described: str
    parameters: int
    laws_given_up: tuple[str, ...]
    off_is_the_original_base: bool
    drift: Drift


_ROWS = 16


def told(
    model: SafeModel,
    texts: Sequence[str],
    *,
    source: str = HELD_OUT,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> BaseChanged | None:
    """What is to be said of a model's changed base; None where it was not changed.

    Args:
        model: in eval mode.
        texts: never trained on, on which the drift is measured.
        source: what to call them.
        resamples: of the intervals, which draw whole texts.
        seed: of the intervals.
        progress: called after every few texts.
    """
    if model.base_change is None:
        return None
    rows = sorted(texts, key=len)  # alike in length: little padding
    given = (inputs(model, some) for some in batches(rows, _ROWS))
    compared = _compared(model, given, len(rows), progress)
    return _said(model, _drift(compared, source, resamples, seed))


def told_of(model: SafeModel, given: Mapping[str, Any]) -> BaseChanged | None:
    """The same, measured on one batch of made-up words: keyword arguments of the base."""
    if model.base_change is None:
        return None
    compared = _compared(model, iter([given]), 1, silent)
    return _said(model, _drift(compared, MADE_UP, 1000, 0))


def _said(model: SafeModel, drift: Drift) -> BaseChanged:
    change = model.base_change
    assert change is not None
    return BaseChanged(
        method=change.method,
        described=change.describe(),
        parameters=sum(p.numel() for p in change.tensors(model.base).values()),
        laws_given_up=WAIVED,
        off_is_the_original_base=change.reversible,
        drift=drift,
    )


@attrs.frozen
class _Text:
    """Sums over the positions of one text, and the extremes."""

    agreed: int
    divergence: float
    positions: int
    largest: float
    off_identical: bool


@torch.no_grad()
def _compared(
    model: SafeModel, given: Iterator[Mapping[str, Any]], total: int, progress: Progress
) -> list[_Text]:
    seen: list[_Text] = []
    for plain in given:
        with original(model):
            before: Tensor = model.base(**plain).logits
        after: Tensor = model(**plain).logits
        with model.off():
            same = same_bits(model(**plain).logits, before)
        rows = zip(before, after, _mask(plain, before), strict=True)
        seen += [_text(one[words], other[words], same) for one, other, words in rows]
        progress("drift of the base", len(seen), max(total, len(seen)))
    return seen


def _mask(plain: Mapping[str, Any], logits: Tensor) -> Tensor:
    mask = plain.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == logits.shape[:2]:
        return mask.bool()
    return torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)


def _text(before: Tensor, after: Tensor, off_identical: bool) -> _Text:
    return _Text(
        int(agrees(before, after).sum()),
        float(kl_per_position(before, after).sum()),
        len(before),
        float((before - after).abs().max()),
        off_identical,
    )


def _drift(seen: Sequence[_Text], source: str, resamples: int, seed: int) -> Drift:
    weights = [text.positions for text in seen]
    agreed = [text.agreed / text.positions for text in seen]
    divergence = [text.divergence / text.positions for text in seen]
    return Drift(
        bootstrap(agreed, weights=weights, resamples=resamples, seed=seed),
        bootstrap(divergence, weights=weights, resamples=resamples, seed=seed),
        max(text.largest for text in seen),
        sum(weights),
        len(seen),
        source,
        all(text.off_identical for text in seen),
    )


# What every output of a model with a changed base says, in one place.


def given_up(laws: Sequence[str]) -> str:
    """Which laws do not hold.

    >>> given_up(("L1", "L2"))
    'L1 and L2 do not hold'
    """
    return f"{' and '.join(laws)} do not hold"


def sentence(changed: BaseChanged) -> str:
    """The base was changed: how, what that gives up, how far it went, and what off() is."""
    return (
        f"THE BASE WAS CHANGED ({changed.described}): {given_up(changed.laws_given_up)}. "
        f"Without a sample, {drifted(changed.drift)}. {of_off(changed.off_is_the_original_base)}"
    )


def drifted(drift: Drift) -> str:
    """How far the base went, in numbers."""
    return (
        f"{percent(drift.agreement.value)} of next tokens are the original's, KL "
        f"{drift.kl.value:.2g} nats, largest logit difference {drift.largest:.2g} "
        f"({drift.texts} {drift.source})"
    )


def of_off(original: bool) -> str:
    """What switching everything off gives."""
    if original:
        return "off() is the original base, bit for bit."
    return "off() is the changed base: its layers were trained in place."


def for_the_card(facts: Mapping[str, Any]) -> str:
    """What the model card of an adapter says, from the adapter's config."""
    drift = facts["drift"]
    told = (
        f"Without a sample, {percent(drift['agreement'])} of next tokens on {drift['texts']} "
        f"{drift['source']} were the original's (KL {drift['kl']:.2g} nats, largest logit "
        f"difference {drift['largest']:.2g})."
        if drift
        else "How far it went from the original was not measured: `safe verify` does."
    )
    return (
        f"**The base was changed** ({facts['described']}, {facts['parameters']:,} parameters). "
        f"{given_up(facts['laws_given_up'])}: with the sense absent or its gate at 0, outputs are "
        f"NOT the base model's. {told} {of_off(facts['off_is_the_original_base'])}"
    )


def for_the_adapter(drift: Drift) -> dict[str, Any]:
    """The numbers that an adapter's config keeps."""
    return {
        "agreement": drift.agreement.value,
        "kl": drift.kl.value,
        "largest": drift.largest,
        "positions": drift.positions,
        "texts": drift.texts,
        "source": drift.source,
    }
