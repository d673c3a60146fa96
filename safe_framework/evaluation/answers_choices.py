"""Which of a closed set of answers a model finds likeliest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safe_framework.core.class_readout import class_logits, first_ids, token_places
from safe_framework.core.output_head import logits_at
from safe_framework.core.processor_prepare import IGNORED, answer_ids, with_answers
from safe_framework.interfaces.types import Sample
from safe_framework.utils.sequences_groups import batches

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example

Heard = tuple["Example", Mapping[str, Sample]]
"""An example, and those of its samples that are heard."""


def choose(
    model: SafeModel, asked: Sequence[Heard], *, batch_size: int, gate: Mapping[str, float]
) -> list[str]:
    """The likeliest label of each example.

    A label's likelihood is that of all its tokens and of the end behind them. Where an example is
    read at its tokens, the label whose first token is likeliest there, in the mean over them.

    Args:
        model: in eval mode.
        asked: examples with ``labels``, and the samples that are heard.
        batch_size: rows at a time.
        gate: strengths by modality.
    """
    chosen = [_read_at_tokens(model, *one, gate) for one in asked]
    open_ = [row for row, label in enumerate(chosen) if label is None]
    pairs = [(asked[row], label) for row in open_ for label in asked[row][0].labels]
    scores: list[float] = []
    for some in batches(pairs, batch_size):
        scores += likelihoods(model, some, gate)
    left = iter(scores)
    for row in open_:
        labels = asked[row][0].labels
        own = [next(left) for _ in labels]
        chosen[row] = labels[own.index(max(own))]
    return [label for label in chosen if label is not None]


def likelihoods(
    model: SafeModel, pairs: Sequence[tuple[Heard, str]], gate: Mapping[str, float]
) -> list[float]:
    """Log-likelihood of a label behind each example's prompt, in nats."""
    batch = dict(_inputs(model, [heard for heard, _ in pairs], "right"))
    answers = [answer_ids(model.tokenizer, label, "labels") for _, label in pairs]
    batch |= with_answers(batch, answers, model.processor.padding)
    batch = {key: value.to(model.device) for key, value in batch.items()}
    targets = torch.nn.functional.pad(batch.pop("labels")[:, 1:], (0, 1), value=IGNORED)
    places = targets != IGNORED  # position t predicts token t + 1
    logits = logits_at(model, model.base, {**batch, "gate": dict(gate)}, places)
    wanted = targets[places].unsqueeze(-1)  # (words, 1)
    words = logits.float().log_softmax(-1).gather(-1, wanted).squeeze(-1)
    owner = places.nonzero()[:, 0]
    scores: list[float] = words.new_zeros(len(pairs)).index_add(0, owner, words).tolist()
    return scores


def _read_at_tokens(
    model: SafeModel, example: Example, samples: Mapping[str, Sample], gate: Mapping[str, float]
) -> str | None:
    """The label that stands at the modality's tokens; None where there are none to read."""
    if not example.at_tokens or not samples:
        return None
    batch = dict(_inputs(model, [(example, samples)], "right"))
    ids: Tensor = batch["input_ids"]
    places = token_places(ids[0].tolist(), model.processor.markers)
    if not places:
        return None
    moved: dict[str, Any] = {key: value.to(model.device) for key, value in batch.items()}
    at = torch.zeros_like(moved["input_ids"], dtype=torch.bool)
    at[0, list(places)] = True
    logits = logits_at(model, model.base, {**moved, "gate": dict(gate)}, at)  # (tokens, vocabulary)
    firsts = torch.tensor(first_ids(model.tokenizer, example.labels), device=model.device)
    read = class_logits(logits, firsts).log_softmax(-1).mean(0)  # (labels,)
    return example.labels[int(read.argmax())]


def _inputs(model: SafeModel, asked: Sequence[Heard], side: str) -> Mapping[str, Any]:
    names = sorted({name for _, samples in asked for name in samples})
    columns: dict[str, Any] = {name: [samples.get(name) for _, samples in asked] for name in names}
    prompts = [example.prompt for example, _ in asked]
    made: Mapping[str, Any] = model.processor(text=prompts, padding_side=side, **columns)
    return made
