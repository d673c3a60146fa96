"""How far fine-tuning took the base (Stage B): the changed base against the original.

Both are given texts without a sample. What every output of a model with a changed base says is
worded here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.base_change import WAIVED, laws_given_up, what_off_gives
from safe_framework.evaluation.answers import (
    batched_apart,
    placeholders,
    text_inputs,
    text_rows,
)
from safe_framework.evaluation.metrics import Estimate, TextSums, agreement_and_kl, sum_text
from safe_framework.utils.formatting import percent
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.tensors import bitwise_equal

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import TextRow


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
        parameters: how many numbers of the base, or added to it, were trained.
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


def measure_drift(
    model: SafeModel,
    texts: Sequence[str | TextRow],
    *,
    source: str = HELD_OUT,
    resamples: int = 1000,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> BaseChanged | None:
    """How a model's base was changed, with its drift; None where it was not changed.

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
    rows = text_rows(texts)
    given = (text_inputs(model, some) for some in batched_apart(rows, _ROWS))
    compared = _compared(model, given, len(rows), progress)
    return _with_drift(model, _drift(compared, source, resamples, seed))


def measure_drift_on_batch(model: SafeModel, given: Mapping[str, Any]) -> BaseChanged | None:
    """The same, measured on one batch of made-up tokens: keyword arguments of the base."""
    if model.base_change is None:
        return None
    compared = _compared(model, iter([given]), 1, no_progress)
    return _with_drift(model, _drift(compared, MADE_UP, 1000, 0))


def _with_drift(model: SafeModel, drift: Drift) -> BaseChanged:
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
    """One text: its sums, its largest difference of two logits, and whether off is the original."""

    sums: TextSums
    largest: float
    off_identical: bool


@torch.no_grad()
def _compared(
    model: SafeModel, given: Iterator[Mapping[str, Any]], total: int, progress: ProgressCallback
) -> list[_Text]:
    seen: list[_Text] = []
    for plain in given:
        with model.original_base():
            before: Tensor = model.base(**plain).logits
        after: Tensor = model(**plain).logits
        with model.off():
            same = bitwise_equal(model(**plain).logits, before)
        rows = zip(before, after, _mask(model, plain, before), strict=True)
        seen += [_text(one[real], other[real], same) for one, other, real in rows]
        progress("drift of the base", len(seen), max(total, len(seen)))
    return seen


def _mask(model: SafeModel, plain: Mapping[str, Any], logits: Tensor) -> Tensor:
    if "decoder_attention_mask" in plain:
        decoded: Tensor = plain["decoder_attention_mask"]
        return decoded.bool()
    mask = plain.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == logits.shape[:2]:
        return mask.bool() & ~placeholders(model, plain["input_ids"])
    return torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)


def _text(before: Tensor, after: Tensor, off_identical: bool) -> _Text:
    largest = float((before - after).abs().max())
    return _Text(sum_text(before, after), largest, off_identical)


def _drift(seen: Sequence[_Text], source: str, resamples: int, seed: int) -> Drift:
    sums = [text.sums for text in seen]
    return Drift(
        *agreement_and_kl(sums, resamples=resamples, seed=seed),
        max(text.largest for text in seen),
        sum(text.positions for text in sums),
        len(seen),
        source,
        all(text.off_identical for text in seen),
    )


def describe_change(changed: BaseChanged) -> str:
    """The base was changed: how, what that gives up, how far it went, and what off() is."""
    return (
        f"THE BASE WAS CHANGED ({changed.described}): {laws_given_up(changed.laws_given_up)}. "
        f"Without a sample, {describe_drift(changed.drift)}. "
        f"{what_off_gives(changed.off_is_the_original_base)}"
    )


def describe_drift(drift: Drift) -> str:
    """How far the base went, in numbers."""
    return (
        f"{percent(drift.agreement.value)} of next tokens are the original's, KL "
        f"{drift.kl.value:.2g} nats, largest logit difference {drift.largest:.2g} "
        f"({drift.texts} {drift.source})"
    )


def adapter_facts(drift: Drift) -> dict[str, Any]:
    """The numbers that an adapter's config keeps."""
    return {
        "agreement": drift.agreement.value,
        "kl": drift.kl.value,
        "largest": drift.largest,
        "positions": drift.positions,
        "texts": drift.texts,
        "source": drift.source,
    }
