"""Retention in its three forms, and the check that a closed gate is the base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safe_framework.core.output_head import logits_at
from safe_framework.data.distractors import FOREIGN, KINDS, distractor
from safe_framework.errors import SafeError
from safe_framework.evaluation.answers import (
    batched_apart,
    example_inputs,
    for_logits,
    text_inputs,
    text_rows,
    without_modality,
    word_positions,
)
from safe_framework.evaluation.metrics import TextSums, agreement_and_kl, merge_sums, sum_text
from safe_framework.evaluation.results import Absent, Agreement, GateZero, Retention
from safe_framework.evaluation.shared_layers import SharedLayers
from safe_framework.interfaces.samples import Sample
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.tensors import bitwise_equal

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example, TextRow

LOGIT_ROWS = 16  # texts at a time: logits of a large vocabulary are what fills the memory


def retention(
    model: SafeModel,
    modality: str,
    texts: Sequence[str | TextRow],
    examples: Sequence[Example],
    foreign: Sequence[Sample] = (),
    *,
    resamples: int = 1000,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> Retention:
    """Compare the model with its base on texts never trained on, and on the test prompts.

    Args:
        model: in eval mode.
        modality: whose gate is opened and whose samples accompany the texts.
        texts: of the base's own domain, never trained on, with their pictures.
        examples: of the test data; irrelevant samples are made from theirs.
        foreign: more irrelevant samples, which are not of the task; may be none.
        resamples: of the intervals, which draw whole texts.
        seed: of the irrelevant samples and the intervals.
        progress: called after every few texts.
    """
    pools = distractor_pools(modality, examples, foreign)
    with SharedLayers.of(model, {modality: 1.0}) as layers:
        absent, found = _compare_on_texts(model, modality, texts, pools, seed, layers, progress)
        relevant = _compare_on_examples(model, modality, examples, layers, progress)
    kinds = {kind: agreement_of(rows, resamples, seed) for kind, rows in found.items()}
    merged = [merge_sums(rows) for rows in zip(*found.values(), strict=True)]
    return Retention(
        absent,
        kinds,
        agreement_of(merged, resamples, seed),
        agreement_of(relevant, resamples, seed),
    )


def distractor_pools(
    modality: str, examples: Sequence[Example], foreign: Sequence[Sample]
) -> Mapping[str, Sequence[Sample]]:
    """By kind of irrelevant sample, what they are made from; foreign ones if there are any."""
    pool = [example.samples[modality] for example in examples]
    return dict.fromkeys(KINDS, pool) | ({FOREIGN: foreign} if foreign else {})


class DistractorDraw:
    """Draws irrelevant samples; foreign ones move no other kind.

    Args:
        modality: whose they are.
        pools: what they are made from, by kind.
        seed: of the drawing.
    """

    def __init__(self, modality: str, pools: Mapping[str, Sequence[Sample]], seed: int) -> None:
        self.modality, self.pools = modality, pools
        self._own, self._foreign = (torch.Generator().manual_seed(seed) for _ in range(2))

    def __call__(self, kind: str, count: int) -> list[Mapping[str, Sample]]:
        """``count`` samples of a kind, each by the modality's name."""
        draw, pool = self._foreign if kind == FOREIGN else self._own, self.pools[kind]
        return [{self.modality: distractor(kind, pool, draw)} for _ in range(count)]


def _compare_on_texts(
    model: SafeModel,
    modality: str,
    texts: Sequence[str | TextRow],
    pools: Mapping[str, Sequence[Sample]],
    seed: int,
    layers: SharedLayers,
    progress: ProgressCallback,
) -> tuple[Absent, Mapping[str, list[TextSums]]]:
    draw = DistractorDraw(modality, pools, seed)
    identical, unaided = True, list[TextSums]()
    found: dict[str, list[TextSums]] = {kind: [] for kind in pools}
    for rows in batched_apart(text_rows(texts), LOGIT_ROWS):
        plain = text_inputs(model, rows)
        with model.original_base(), layers.kept() as entering:
            base = model.base(**plain).logits
        safe = model(**plain).logits
        identical &= bitwise_equal(base, safe)
        unaided += _compare(base, safe, word_positions(model, plain))
        for kind in pools:
            given = text_inputs(model, rows, draw(kind, len(rows)))
            with layers.shared(entering, given, plain) as inputs:
                found[kind] += compare_with_base(model, modality, inputs, plain, base, 1.0)
        progress("retention", len(unaided), len(texts))
    whole = merge_sums(unaided)
    return Absent(identical, whole.agreed / whole.positions, len(texts)), found


def _compare_on_examples(
    model: SafeModel,
    modality: str,
    examples: Sequence[Example],
    layers: SharedLayers,
    progress: ProgressCallback,
) -> list[TextSums]:
    found: list[TextSums] = []
    for rows in batched_apart(examples, LOGIT_ROWS):
        base, prompts = _reference(model, modality, rows)
        plain = for_logits(model, prompts)
        words = word_positions(model, plain)
        with model.original_base(), layers.kept() as entering:
            before = _at_words(base, model.base, plain, words)
        given = for_logits(model, example_inputs(model, rows))
        with layers.shared(entering, given, plain) as inputs:
            found += _compare_words(model, inputs, before, {modality: 1.0})
        progress("relevant samples", len(found), len(examples))
    return found


def compare_with_base(
    model: SafeModel,
    modality: str,
    given: Mapping[str, Any],
    plain: Mapping[str, Any],
    base: Tensor,
    gate: float,
) -> list[TextSums]:
    """Compare texts with samples against the base, at the positions of their words.

    Args:
        model: in eval mode.
        modality: whose gate is set to ``gate``.
        given: texts and samples, processed.
        plain: the texts alone, processed.
        base: the base's logits of ``plain``, (batch, length, vocabulary).
        gate: strength.
    """
    mask = word_positions(model, plain)
    if gate == 0:  # what the modality inserts was removed again
        return _compare(base, model(**given, gate={modality: gate}).logits, mask)
    words = [one[real] for one, real in zip(base, mask, strict=True)]
    return _compare_words(model, given, words, {modality: gate})


def _compare_words(
    model: SafeModel,
    given: Mapping[str, Any],
    base: Sequence[Tensor],
    gate: Mapping[str, float],
) -> list[TextSums]:
    """The same where the base's logits are those at the words of each text, (words, vocabulary)."""
    inputs = {**given, "gate": dict(gate)}
    found = _at_words(model, model.base, inputs, word_positions(model, given))
    return [_text(one, other) for one, other in zip(base, found, strict=True)]


def _at_words(called: Any, base: Any, inputs: Mapping[str, Any], words: Tensor) -> Sequence[Tensor]:
    """Logits at the words of each text, (words, vocabulary).

    The vocabulary is shown no other position, neither padding nor pictures, but where a base's
    processor gives labels, of which the base makes a loss over all positions.
    """
    if "labels" in inputs:
        logits = called(**inputs).logits[words]
    else:
        logits = logits_at(called, base, inputs, words)
    found: Sequence[Tensor] = logits.split(words.sum(1).tolist())
    return found


def _compare(base: Tensor, safe: Tensor, mask: Tensor) -> list[TextSums]:
    return [
        _text(one[real], other[real]) for one, other, real in zip(base, safe, mask, strict=True)
    ]


def _text(base: Tensor, safe: Tensor) -> TextSums:
    sums = sum_text(base, safe)
    if not math.isfinite(sums.divergence):
        raise SafeError(
            "the model's logits hold NaN or infinity where the base's do not",
            hint="its training diverged: train again with a lower learning rate",
        )
    return sums


def agreement_of(texts: Sequence[TextSums], resamples: int, seed: int) -> Agreement:
    """Shares and their intervals, which draw whole texts."""
    agreement, kl = agreement_and_kl(texts, resamples=resamples, seed=seed)
    lengths = tuple(text.positions for text in texts)
    shares = tuple(text.agreed / text.positions for text in texts)
    return Agreement(agreement, kl, sum(lengths), shares, lengths)


def gate_zero(
    model: SafeModel,
    modality: str,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 8,
    progress: ProgressCallback = no_progress,
) -> GateZero:
    """Whether the model with the samples given but the gate at 0 is its base bit for bit."""
    logits, tokens = True, True
    shut = {modality: 0.0}
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    done = 0
    for rows in batched_apart(examples, LOGIT_ROWS):
        given = example_inputs(model, rows)
        base, plain = _reference(model, modality, rows)
        with model.original_base():
            before = base(**for_logits(model, plain)).logits
            expected = base.generate(**plain, **options)
        logits &= bitwise_equal(model(**for_logits(model, given), gate=shut).logits, before)
        tokens &= bitwise_equal(model.generate(**given, gate=shut, **options), expected)
        done += len(rows)
        progress("gate at 0", done, len(examples))
    return GateZero(logits, tokens, len(examples))


def _reference(
    model: SafeModel, modality: str, examples: Sequence[Example]
) -> tuple[Any, Mapping[str, Any]]:
    """What the examples are without ``modality``, and who answers them: the base, if it can."""
    alone = without_modality(examples, modality)
    plain = example_inputs(model, alone)
    return (model if any(row.samples for row in alone) else model.base), plain
