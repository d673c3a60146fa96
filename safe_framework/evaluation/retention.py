"""Retention in its three forms, and the check that a closed gate is the base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.base_change import original
from safe_framework.data.distractors import FOREIGN, KINDS, distractor
from safe_framework.errors import SafeError
from safe_framework.evaluation.answers import Progress, inputs, silent, without
from safe_framework.evaluation.metrics import agrees, bootstrap, kl_per_position
from safe_framework.evaluation.results import Absent, Agreement, GateZero, Retention
from safe_framework.interfaces.types import Sample
from safe_framework.utils.sequences import batches
from safe_framework.utils.tensors import same_bits

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example

LOGIT_ROWS = 16  # texts at a time: logits of a large vocabulary are what fills the memory


@attrs.frozen
class TextSums:
    """Sums over the valid positions of one text.

    Attributes:
        agreed: how many positions rank the same next token first.
        divergence: KL(base || safe) in nats.
        positions: how many were compared.
    """

    agreed: int
    divergence: float
    positions: int


def retention(
    model: SafeModel,
    modality: str,
    texts: Sequence[str],
    examples: Sequence[Example],
    foreign: Sequence[Sample] = (),
    *,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Retention:
    """Compare the model with its base on texts never trained on, and on the test prompts.

    Args:
        model: in eval mode.
        modality: whose gate is opened and whose samples are put beside the texts.
        texts: of the base's own domain, never trained on.
        examples: of the test data; irrelevant samples are made from theirs.
        foreign: more irrelevant samples, which are not of the task; may be none.
        resamples: of the intervals, which draw whole texts.
        seed: of the irrelevant samples and the intervals.
        progress: called after every few texts.
    """
    pool = [example.samples[modality] for example in examples]
    pools = dict.fromkeys(KINDS, pool) | ({FOREIGN: foreign} if foreign else {})
    absent, found = _beside_texts(model, modality, texts, pools, seed, progress)
    relevant = _with_own_samples(model, modality, examples, progress)
    kinds = {kind: agreement_of(rows, resamples, seed) for kind, rows in found.items()}
    merged = [merged_sums(rows) for rows in zip(*found.values(), strict=True)]
    return Retention(
        absent,
        kinds,
        agreement_of(merged, resamples, seed),
        agreement_of(relevant, resamples, seed),
    )


def _beside_texts(
    model: SafeModel,
    modality: str,
    texts: Sequence[str],
    pools: Mapping[str, Sequence[Sample]],
    seed: int,
    progress: Progress,
) -> tuple[Absent, Mapping[str, list[TextSums]]]:
    own, other = (torch.Generator().manual_seed(seed) for _ in range(2))
    identical, unaided = True, list[TextSums]()
    found: dict[str, list[TextSums]] = {kind: [] for kind in pools}
    for rows in batches(sorted(texts, key=len), LOGIT_ROWS):  # alike in length: little padding
        plain = inputs(model, rows)
        with original(model):
            base = model.base(**plain).logits
        safe = model(**plain).logits
        identical &= same_bits(base, safe)
        unaided += _compare(base, safe, plain["attention_mask"])
        for kind, pool in pools.items():
            draw = other if kind == FOREIGN else own  # so that foreign ones move no other kind
            samples = [{modality: distractor(kind, pool, draw)} for _ in rows]
            found[kind] += _beside(model, modality, rows, samples, plain, base)
        progress("retention", len(unaided), len(texts))
    whole = merged_sums(unaided)
    return Absent(identical, whole.agreed / whole.positions, len(texts)), found


def _with_own_samples(
    model: SafeModel, modality: str, examples: Sequence[Example], progress: Progress
) -> list[TextSums]:
    found: list[TextSums] = []
    for rows in batches(examples, LOGIT_ROWS):
        base, plain = _reference(model, modality, rows)
        prompts, samples = [row.prompt for row in rows], [row.samples for row in rows]
        with original(model):
            before = base(**plain).logits
        found += _beside(model, modality, prompts, samples, plain, before)
        progress("relevant samples", len(found), len(examples))
    return found


def _beside(
    model: SafeModel,
    modality: str,
    texts: Sequence[str],
    samples: Sequence[Mapping[str, Sample]],
    plain: Mapping[str, Any],
    base: Tensor,
) -> list[TextSums]:
    """Compare with the gate at 1."""
    return opened(model, modality, inputs(model, texts, samples), plain, base, 1.0)


def opened(
    model: SafeModel,
    modality: str,
    given: Mapping[str, Any],
    plain: Mapping[str, Any],
    base: Tensor,
    gate: float,
) -> list[TextSums]:
    """Compare texts beside samples with the base; what the sense puts into a text is left out.

    Args:
        model: in eval mode.
        modality: whose gate is set to ``gate``.
        given: texts and samples, processed.
        plain: the texts alone, processed.
        base: the base's logits of ``plain``, (batch, length, vocabulary).
        gate: strength.
    """
    logits = model(**given, gate={modality: gate}).logits
    if gate == 0:  # what the sense puts into a text was taken out again
        return _compare(base, logits, plain["attention_mask"])
    words = model.processor.markers.words(given["input_ids"]) & given["attention_mask"].bool()
    return _compare(base, logits, plain["attention_mask"], words)


def _compare(
    base: Tensor, safe: Tensor, mask: Tensor, words: Tensor | None = None
) -> list[TextSums]:
    """Compare the real positions of ``mask`` with those of ``words``, if they are others."""
    rows = zip(base, safe, mask.bool(), (mask if words is None else words).bool(), strict=True)
    return [_text(one[real], other[word]) for one, other, real, word in rows]


def _text(base: Tensor, safe: Tensor) -> TextSums:
    divergence = kl_per_position(base, safe).sum()
    if not divergence.isfinite():
        raise SafeError(
            "the model's logits hold NaN or infinity where the base's do not",
            hint="its training diverged: train again with a lower learning rate",
        )
    return TextSums(int(agrees(base, safe).sum()), divergence.item(), len(base))


def merged_sums(texts: Iterable[TextSums]) -> TextSums:
    """The sums of several texts, or of one text beside several samples."""
    parts = [(text.agreed, text.divergence, text.positions) for text in texts]
    agreed, divergence, positions = (sum(column) for column in zip(*parts, strict=True))
    return TextSums(int(agreed), divergence, int(positions))


def agreement_of(texts: Sequence[TextSums], resamples: int, seed: int) -> Agreement:
    """Shares and their intervals, which draw whole texts."""
    weights = [text.positions for text in texts]
    agreed = [text.agreed / text.positions for text in texts]
    divergence = [text.divergence / text.positions for text in texts]
    return Agreement(
        bootstrap(agreed, weights=weights, resamples=resamples, seed=seed),
        bootstrap(divergence, weights=weights, resamples=resamples, seed=seed),
        sum(weights),
        tuple(agreed),
        tuple(weights),
    )


def gate_zero(
    model: SafeModel,
    modality: str,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 8,
    progress: Progress = silent,
) -> GateZero:
    """Whether the model with the samples given but the gate at 0 is its base bit for bit."""
    logits, tokens = True, True
    shut = {modality: 0.0}
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    for number, rows in enumerate(batches(examples, LOGIT_ROWS)):
        given = inputs(model, [row.prompt for row in rows], [row.samples for row in rows])
        base, plain = _reference(model, modality, rows)
        with original(model):
            before, said = base(**plain).logits, base.generate(**plain, **options)
        logits &= same_bits(model(**given, gate=shut).logits, before)
        tokens &= same_bits(model.generate(**given, gate=shut, **options), said)
        progress("gate at 0", number * LOGIT_ROWS + len(rows), len(examples))
    return GateZero(logits, tokens, len(examples))


def _reference(
    model: SafeModel, modality: str, examples: Sequence[Example]
) -> tuple[Any, Mapping[str, Any]]:
    """What the examples are without ``modality``, and who answers them: the base, if it can."""
    alone = without(examples, modality)
    plain = inputs(model, [row.prompt for row in alone], [row.samples for row in alone])
    return (model if any(row.samples for row in alone) else model.base), plain
