"""One question put to the base and to the model with its sense, and whether their bits differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.base_change import original
from safe_framework.evaluation.answers import evaluating, inputs
from safe_framework.evaluation.metrics import agrees
from safe_framework.utils.tensors import same_bits

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.interfaces.types import Sample


@attrs.frozen
class SideBySide:
    """Two answers to one question.

    Attributes:
        base: without the sample.
        safe: with it, at the gate that was asked for.
        same_logits: whether all logits of the question are equal bit for bit.
        same_answer: whether the answers have the same tokens.
        agreement: share of the question's positions with the same next token.
    """

    base: str
    safe: str
    same_logits: bool
    same_answer: bool
    agreement: float

    @property
    def bitwise(self) -> bool:
        """Whether the model was the base in everything that was compared."""
        return self.same_logits and self.same_answer


@torch.no_grad()
def side_by_side(
    model: SafeModel,
    modality: str,
    question: str,
    sample: Sample | None,
    *,
    gate: float = 1.0,
    max_new_tokens: int = 32,
) -> SideBySide:
    """Ask both, and compare what they are bit for bit.

    Args:
        model: with ``modality`` attached; left as it was.
        modality: whose gate is moved.
        question: put into the recipe's prompt.
        sample: of the modality; None asks both without.
        gate: strength, from 0 to 1.
        max_new_tokens: limit of an answer's length.
    """
    prompt = model.processor.template.replace("{question}", question)
    heard = {} if sample is None else {modality: sample}
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    with evaluating(model):
        plain, given = inputs(model, [prompt]), inputs(model, [prompt], [heard])
        with original(model):  # what stage B changed is not the base's
            generate: Any = model.base.generate
            base, said = model.base(**plain).logits, generate(**plain, **options)
        safe = model(**given, gate={modality: gate}).logits
        replied = model.generate(**given, gate={modality: gate}, **options)
    start = given["input_ids"].shape[1] if gate and heard else plain["input_ids"].shape[1]
    return SideBySide(
        base=_text(model, said, plain["input_ids"].shape[1]),
        safe=_text(model, replied, start),
        same_logits=base.shape == safe.shape and same_bits(base, safe),
        same_answer=said.shape == replied.shape and torch.equal(said, replied),
        agreement=_agreement(model, base, safe, given["input_ids"]),
    )


def _text(model: SafeModel, tokens: Tensor, start: int) -> str:
    config: Any = model.base.config
    new = tokens[0] if config.is_encoder_decoder else tokens[0, start:]
    text: str = model.tokenizer.decode(new, skip_special_tokens=True)
    return text.strip()


def _agreement(model: SafeModel, base: Tensor, safe: Tensor, ids: Tensor) -> float:
    """Over the question's own positions: those that the sense put into the text are left out."""
    if safe.shape[1] == ids.shape[1]:
        safe = safe[:, model.processor.markers.words(ids)[0]]
    return agrees(base, safe).double().mean().item()
