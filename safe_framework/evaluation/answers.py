"""Greedy answers to examples, with the new sense, without it, and with another one's sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.class_readout import class_logits, first_ids, token_places
from safe_framework.core.output_head import logits_at
from safe_framework.core.processor import IGNORED, answer_ids, with_answers
from safe_framework.data.tasks import CLASSES
from safe_framework.evaluation.metrics import normalise
from safe_framework.interfaces.types import Sample
from safe_framework.utils.sequences import batches

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example


# Which of a closed set of answers a model finds likeliest.


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


Progress = Callable[[str, int, int], None]
"""Called with a label, how many are done, and of how many."""


def silent(label: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


@contextmanager
def evaluating(model: SafeModel) -> Iterator[None]:
    """Within the block, the model is in eval mode."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def inputs(
    model: SafeModel, texts: Sequence[str], samples: Sequence[Mapping[str, Sample]] = ()
) -> Mapping[str, Any]:
    """Processed texts, each with its samples by modality, on the base's device."""
    names = sorted({name for row in samples for name in row})
    columns: dict[str, Any] = {name: [row.get(name) for row in samples] for name in names}
    batch = model.processor(text=list(texts), return_tensors="pt", padding_side="left", **columns)
    moved: Mapping[str, Any] = batch.to(model.device)
    return moved


def answer(
    model: SafeModel,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 8,
    batch_size: int = 32,
    gate: Mapping[str, float] | None = None,
    label: str = "answers",
    progress: Progress = silent,
) -> list[str]:
    """The greedy answer to each example, with the samples that it carries.

    A classification is answered by the likeliest of its labels.

    Args:
        model: in eval mode.
        examples: questions and their samples; the expected answers are not looked at.
        max_new_tokens: limit of an answer's length.
        batch_size: examples at a time.
        gate: strengths by modality for these answers, instead of the model's own.
        label: what ``progress`` is told that is being done.
        progress: called after every batch.
    """
    return [
        text
        for text, _ in answer_surely(
            model, examples, max_new_tokens=max_new_tokens, batch_size=batch_size,
            gate=gate, label=label, progress=progress,
        )
    ]  # fmt: skip


def answer_surely(
    model: SafeModel,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 8,
    batch_size: int = 32,
    gate: Mapping[str, float] | None = None,
    label: str = "answers",
    progress: Progress = silent,
) -> list[tuple[str, float | None]]:
    """As ``answer``, each with its probability: the product of its tokens', its end included.

    A label that was chosen as the likeliest has none.
    """
    strengths = {**model.gates, **(gate or {})}
    found: dict[int, tuple[str, float | None]] = {}
    closed = [place for place, example in enumerate(examples) if example.task == CLASSES]
    for places in batches(closed, batch_size):
        asked = [(examples[i], _opened(examples[i].samples, strengths)) for i in places]
        chosen = choose(model, asked, batch_size=batch_size, gate=gate or {})
        found |= {place: (text, None) for place, text in zip(places, chosen, strict=True)}
        progress(label, len(found), len(examples))
    free = [place for place in range(len(examples)) if place not in found]
    told = _generated(model, [examples[i] for i in free], max_new_tokens, batch_size, gate or {})
    for place, said in zip(free, told, strict=True):
        found[place] = said
        if len(found) % batch_size == 0 or len(found) == len(examples):
            progress(label, len(found), len(examples))
    return [found[place] for place in range(len(examples))]


def _generated(
    model: SafeModel,
    examples: Sequence[Example],
    max_new_tokens: int,
    batch_size: int,
    gate: Mapping[str, float],
) -> Iterator[tuple[str, float]]:
    strengths = {**model.gates, **gate}
    for rows in batches(examples, batch_size):
        heard = [_opened(row.samples, strengths) for row in rows]
        batch = inputs(model, [row.prompt for row in rows], heard)
        out = model.generate(
            **batch, gate=dict(gate), max_new_tokens=max_new_tokens, do_sample=False,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        texts = model.tokenizer.batch_decode(
            new_tokens(model, out.sequences, batch), skip_special_tokens=True
        )
        sure = _probabilities(model, out.sequences, out.scores)
        yield from zip(map(str.strip, texts), sure, strict=True)


def _probabilities(model: SafeModel, tokens: Tensor, scores: Sequence[Tensor]) -> list[float]:
    """The product of each row's new tokens' probabilities, up to the first that ends it."""
    ends: Any = model.base.generation_config.eos_token_id  # type: ignore[union-attr]  # as generate
    new = tokens[:, -len(scores) :]
    ended = torch.isin(new, torch.tensor([] if ends is None else ends, device=new.device))
    after = ended.cumsum(1) - ended.long() > 0
    logs = torch.stack(
        [
            step.float().log_softmax(-1).gather(1, new[:, [place]]).squeeze(1)
            for place, step in enumerate(scores)
        ],
        dim=1,
    )  # (batch, new)
    found: list[float] = logs.masked_fill(after, 0.0).sum(1).exp().tolist()
    return found


def answer_without(
    ask: Callable[..., list[str]], examples: Sequence[Example], modality: str, *, label: str
) -> list[str]:
    """The answer to each example without ``modality``; each distinct question is asked once.

    Args:
        ask: ``answer`` with its model and options bound.
        examples: questions and their samples.
        modality: what is left out.
        label: what the progress callback is told.
    """
    alone = without(examples, modality)
    distinct = {_question(example): example for example in reversed(alone)}
    given = ask(list(distinct.values()), label=label)
    by_question = dict(zip(distinct, given, strict=True))
    return [by_question[_question(example)] for example in alone]


def _question(example: Example) -> tuple[object, ...]:
    return example.prompt, example.labels, example.place if example.samples else ""


def without(examples: Sequence[Example], modality: str) -> list[Example]:
    """The examples without their samples of ``modality``."""
    return [
        attrs.evolve(example, samples=_dropped(example.samples, modality)) for example in examples
    ]


def _dropped(samples: Mapping[str, Sample], modality: str) -> Mapping[str, Sample]:
    return {name: sample for name, sample in samples.items() if name != modality}


def shuffled(examples: Sequence[Example], modality: str, *, seed: int = 0) -> list[Example]:
    """The examples, each with another one's sample, of another answer wherever that is possible."""
    order = derangement([normalise(example.answer) for example in examples], seed=seed)
    return [
        attrs.evolve(
            example, samples={**example.samples, modality: examples[other].samples[modality]}
        )
        for example, other in zip(examples, order, strict=True)
    ]


def derangement(labels: Sequence[str], *, seed: int = 0) -> list[int]:
    """A seeded permutation that moves every row, to another label as often as is possible.

    Rows are put in order of their labels and rotated by the size of the largest group: a group
    can then meet itself only if it holds more than half of the rows.

    >>> sorted(derangement(["a", "a", "b", "b"])[:2])
    [2, 3]
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).tolist()
    order.sort(key=lambda row: labels[row])
    largest = max((labels.count(label) for label in set(labels)), default=0)
    step = largest if largest < len(labels) else 1
    found = [0] * len(labels)
    for place, row in enumerate(order):
        found[row] = order[(place + step) % len(labels)]
    return found


def _opened(samples: Mapping[str, Sample], gates: Mapping[str, float]) -> Mapping[str, Sample]:
    """The samples that are heard; the others would be taken out of the text, markers and all."""
    return {name: sample for name, sample in samples.items() if gates.get(name, 1.0) != 0}


def new_tokens(model: SafeModel, tokens: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """What ``generate`` added: all that an encoder-decoder gave, else what follows the prompt."""
    config: Any = model.base.config
    if config.is_encoder_decoder:
        return tokens
    return tokens[:, batch["input_ids"].shape[1] :]
