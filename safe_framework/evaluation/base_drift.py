"""How far Stage B took the base: the changed one without a sample, beside the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.base_change import WAIVED, original
from safe_framework.evaluation.answers import Progress, inputs, silent
from safe_framework.evaluation.base_drift_changed import HELD_OUT, MADE_UP, BaseChanged, Drift
from safe_framework.evaluation.metrics import agrees, bootstrap, kl_per_position
from safe_framework.utils.sequences_groups import batches
from safe_framework.utils.tensors import same_bits

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel

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
