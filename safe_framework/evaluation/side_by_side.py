"""One question put to the base and to the model with a sample, and whether their bits differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.relevance import Strength
from safe_framework.core.turn_end import TurnEnd
from safe_framework.evaluation.answers import (
    eval_mode,
    for_logits,
    model_inputs,
    new_tokens,
    word_positions,
)
from safe_framework.evaluation.metrics import same_top_token
from safe_framework.interfaces.samples import sample_counts
from safe_framework.utils.tensors import bitwise_equal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from safe_framework.core.model import SafeModel
    from safe_framework.data.pictures import Picture
    from safe_framework.interfaces.samples import Sample, Several


@attrs.frozen
class SideBySide:
    """Two answers to one question.

    Attributes:
        base: without the sample.
        safe: with it, at the gate that was asked for.
        opened: whether the sample was listened to, where that was left to a relevance head.
        same_logits: whether all logits of the question are equal bit for bit.
        same_answer: whether the answers have the same tokens.
        agreement: share of the question's positions with the same next token; of an
            encoder-decoder, whether the answer begins with the same one.
    """

    base: str
    safe: str
    same_logits: bool
    same_answer: bool
    agreement: float
    opened: bool | None = None

    @property
    def bitwise(self) -> bool:
        """Whether the model was the base in everything that was compared."""
        return self.same_logits and self.same_answer


@torch.no_grad()
def side_by_side(
    model: SafeModel,
    modality: str,
    question: str,
    sample: Sample | Several[Sample] | None,
    *,
    gate: Strength = 1.0,
    max_new_tokens: int = 32,
    images: Sequence[Picture] = (),
) -> SideBySide:
    """Ask both, and compare what they are bit for bit.

    Args:
        model: with ``modality`` attached; left as it was.
        modality: whose gate is moved.
        question: put into the recipe's prompt.
        sample: of the modality, or several; None asks both without.
        gate: strength, from 0 to 1, or ``"auto"``.
        max_new_tokens: limit of an answer's length.
        images: pictures beside the question, which both see.
    """
    samples = {} if sample is None else {modality: sample}
    prompt = model.processor.prompt(question, sample_counts(samples))
    end = TurnEnd.of(model, [prompt])
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    options |= {} if end is None else end.options({})
    with eval_mode(model):
        plain, given = (
            model_inputs(model, [prompt], [beside], [images]) for beside in ({}, samples)
        )
        asked, heard = for_logits(model, plain), for_logits(model, given)
        with model.original_base():  # as it was before any fine-tuning
            generate: Any = model.base.generate
            base = model.base(**asked).logits
            expected = generate(**plain, **options)
        replied = model.generate(**given, gate={modality: gate}, **options)
        decided = model.last_gates.get(modality)
        opened = None if decided is None else bool(decided[0])
        # What was decided of the question holds for both; at gate 0, no marker of it is left.
        gate = gate if opened is None else float(opened)
        safe = model(**heard, gate={modality: gate}).logits
    return SideBySide(
        base=_text(model, expected, plain, end),
        safe=_text(model, replied, given if gate and samples else plain, end),
        same_logits=base.shape == safe.shape and bitwise_equal(base, safe),
        same_answer=expected.shape == replied.shape and torch.equal(expected, replied),
        agreement=_agreement(model, base, safe, asked, heard if gate else asked),
        opened=opened,
    )


def _text(model: SafeModel, tokens: Tensor, asked: Mapping[str, Any], end: TurnEnd | None) -> str:
    new = new_tokens(model, tokens, asked)[0]
    new = new if end is None else end.cut(new)
    text: str = model.tokenizer.decode(new, skip_special_tokens=True)
    return text.strip()


def _agreement(
    model: SafeModel,
    base: Tensor,
    safe: Tensor,
    asked: Mapping[str, Any],
    heard: Mapping[str, Any],
) -> float:
    """Over the question's own words; what a shut modality had inserted was removed again."""
    base, safe = base[word_positions(model, asked)], safe[word_positions(model, heard)]
    return same_top_token(base, safe).double().mean().item()
