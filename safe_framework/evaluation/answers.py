"""Greedy answers to examples: with a modality, without it, and with another example's sample.

Where the answers are a closed set of labels, the answer is the likeliest label.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import attrs
import torch
from torch import Tensor

from safe_framework.core.attend import answering, whole_text_columns
from safe_framework.core.class_readout import class_logits, first_ids, token_positions
from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.output_head import logits_at
from safe_framework.core.padding import attention_mask, pad_right
from safe_framework.core.prompt_rows import PromptEncoder, decoder_start_id, halves
from safe_framework.core.relevance import AUTO, Strength
from safe_framework.core.turn_end import TurnEnd
from safe_framework.data.examples import Example, TextRow
from safe_framework.data.tasks import CLASSES
from safe_framework.errors import SafeError
from safe_framework.evaluation.metrics import normalise
from safe_framework.evaluation.read_once import behind_pictures, behind_prompts
from safe_framework.interfaces.samples import Sample, each_of, sample_counts
from safe_framework.interfaces.types import FROM, PRESENT
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.sequences import batched

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.pictures import Picture


@contextmanager
def eval_mode(model: SafeModel) -> Iterator[None]:
    """Within the block, the model is in eval mode."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def model_inputs(
    model: SafeModel,
    texts: Sequence[str],
    samples: Sequence[Mapping[str, Sample]] = (),
    images: Sequence[Sequence[Picture]] = (),
) -> Mapping[str, Any]:
    """Processed texts, each with its samples by modality and its pictures, on the base's device.

    A base's own processor may refuse texts with pictures beside others without: ``batched_apart``.
    """
    moved: Mapping[str, Any] = _process(model, texts, samples, images, "left").to(model.device)
    return moved


def example_inputs(model: SafeModel, examples: Sequence[Example]) -> Mapping[str, Any]:
    """``model_inputs`` of examples' prompts, samples and pictures."""
    moved: Mapping[str, Any] = _process_examples(model, examples, "left").to(model.device)
    return moved


def text_inputs(
    model: SafeModel, rows: Sequence[TextRow], samples: Sequence[Mapping[str, Sample]] = ()
) -> Mapping[str, Any]:
    """What a call for logits is given of texts with pictures, beside samples that are not theirs.

    An encoder-decoder reads the first half of each text and predicts the second, as in training.
    """
    present = [sample_counts(row) for row in samples] or [dict[str, int]() for _ in rows]
    texts = list(map(model.processor.markers.keep_fitting, [row.text for row in rows], present))
    images = [row.images for row in rows]
    if not decodes_separately(model.base):
        batch = model_inputs(model, texts, samples, images)
        return {**batch, **whole_text_columns(model.attends, batch)}
    pairs = list(map(halves, texts))
    batch = model_inputs(model, [first for first, _ in pairs], samples, images)
    encoder = PromptEncoder.of(model)
    return _with_decoder(model, batch, [encoder.answer(second)[:-1] for _, second in pairs])


def for_logits(model: SafeModel, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Prompts as a call for logits: an encoder-decoder is given the first token of its answer."""
    if not decodes_separately(model.base):
        return batch
    return _with_decoder(model, batch, [[] for _ in batch["input_ids"]])


def _with_decoder(
    model: SafeModel, batch: Mapping[str, Any], targets: Sequence[Sequence[int]]
) -> Mapping[str, Any]:
    """The batch with the ids that a decoder of its own is given, behind its start token."""
    start = decoder_start_id(model.base)
    rows = [[start, *target] for target in targets]
    ids = pad_right(rows, model.processor.padding)
    given = {"decoder_input_ids": ids, "decoder_attention_mask": attention_mask(rows)}
    return {**batch, **{name: value.to(model.device) for name, value in given.items()}}


def _process(
    model: SafeModel,
    texts: Sequence[str],
    samples: Sequence[Mapping[str, Sample]],
    images: Sequence[Sequence[Picture]],
    side: str,
) -> Any:
    """Processed texts, padded on one side."""
    names = sorted({name for row in samples for name in row})
    columns: dict[str, Any] = {name: [row.get(name) for row in samples] for name in names}
    present = [sample_counts(row) for row in samples] or [dict[str, int]() for _ in texts]
    asked = list(map(model.processor.markers.leave_out_absent, texts, present))
    if any(images):
        columns["images"] = [[picture.open() for picture in own] for own in images]
    return model.processor(text=asked, padding_side=side, **columns)


def _process_examples(model: SafeModel, examples: Sequence[Example], side: str) -> Any:
    prompts, samples = [row.prompt for row in examples], [row.samples for row in examples]
    return _process(model, prompts, samples, [row.images for row in examples], side)


class _HasImages(Protocol):
    @property
    def images(self) -> Sequence[Picture]:
        """Of the row, in order."""


_Row = TypeVar("_Row", bound=_HasImages)

_FEWEST_TOKENS = 8  # that an answer may have
_SPARE_TOKENS = 2  # behind the longest expected answer


def text_rows(texts: Sequence[str | TextRow]) -> list[TextRow]:
    """Texts as rows, those of alike length beside each other, so that little is padded."""
    rows = [TextRow(text) if isinstance(text, str) else text for text in texts]
    return sorted(rows, key=lambda row: len(row.text))


def word_positions(model: SafeModel, batch: Mapping[str, Any]) -> Tensor:
    """Where a batch holds the texts' own words, (batch, length).

    No padding, no markers of a modality, and no placeholders of pictures, which predict nothing
    that anybody reads. Of an encoder-decoder, what its decoder is given.
    """
    if "decoder_attention_mask" in batch:
        decoded: Tensor = batch["decoder_attention_mask"]
        return decoded.bool()
    ids: Tensor = batch["input_ids"]
    words = model.processor.markers.words(ids) & batch["attention_mask"].bool()
    return cast("Tensor", words & ~placeholders(model, ids))


def placeholders(model: SafeModel, ids: Tensor) -> Tensor:
    """Where ids stand for a part of a picture or a video."""
    config: Any = model.base.config
    named = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    known = [number for number in named if number is not None]
    return torch.isin(ids, torch.tensor(known, dtype=ids.dtype, device=ids.device))


def batched_apart(rows: Sequence[_Row], size: int) -> Iterator[Sequence[_Row]]:
    """At most ``size`` rows at a time in order: first those without pictures, then the others."""
    for pictured in (False, True):
        yield from batched([row for row in rows if bool(row.images) is pictured], size)


def answer(
    model: SafeModel,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 8,
    batch_size: int = 32,
    gate: Mapping[str, Strength] | None = None,
    label: str = "answers",
    progress: ProgressCallback = no_progress,
) -> list[str]:
    """The greedy answer to each example, with the samples that it carries.

    A classification is answered by the likeliest of its labels.

    Args:
        model: in eval mode.
        examples: questions and their samples; of the expected answers no more than their lengths
            is looked at, to put answers of like length into one batch.
        max_new_tokens: limit of an answer's length.
        batch_size: examples at a time.
        gate: strengths by modality for these answers, instead of the model's own.
        label: what ``progress`` shows.
        progress: called after every batch.
    """
    return [
        text
        for text, _ in answer_with_confidence(
            model, examples, max_new_tokens=max_new_tokens, batch_size=batch_size,
            gate=gate, label=label, progress=progress,
        )
    ]  # fmt: skip


def answer_with_confidence(
    model: SafeModel,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 8,
    batch_size: int = 32,
    gate: Mapping[str, Strength] | None = None,
    label: str = "answers",
    progress: ProgressCallback = no_progress,
) -> list[tuple[str, float | None]]:
    """As ``answer``, each with its probability: the product of its tokens', its end included.

    A label that was chosen as the likeliest has none.
    """
    active = _with_open_gates(examples, {**model.gates, **(gate or {})})
    found: dict[int, tuple[str, float | None]] = {}
    closed = [index for index, example in enumerate(examples) if example.task == CLASSES]
    for rows in batched(closed, batch_size):
        asked = [active[index] for index in rows]
        chosen = choose_label(model, asked, batch_size=batch_size, gate=gate or {})
        found |= {index: (text, None) for index, text in zip(rows, chosen, strict=True)}
        progress(label, len(found), len(examples))
    free = [index for index in range(len(examples)) if index not in found]
    free.sort(key=lambda index: _together(examples[index]))
    generated = _generated(model, [active[i] for i in free], max_new_tokens, batch_size, gate or {})
    for index, pair in zip(free, generated, strict=True):
        found[index] = pair
        if len(found) % batch_size == 0 or len(found) == len(examples):
            progress(label, len(found), len(examples))
    return [found[index] for index in range(len(examples))]


def answer_room(model: SafeModel, examples: Sequence[Example], most: int | None) -> int:
    """How many tokens an answer may have: ``most``, else as many as each expected one needs.

    An answer that says more than its first words may be right only in its last ones.

    Args:
        model: whose tokens are counted.
        examples: with their expected answers; those that are chosen from labels need none.
        most: that was asked for; one that would cut an expected answer short is warned of.
    """
    texts = [one.answer for one in examples if one.answer and one.task != CLASSES]
    ids = model.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    longest = max(map(len, ids), default=0)
    if most is None:
        return max(_FEWEST_TOKENS, longest + _SPARE_TOKENS)
    if most < longest:
        warnings.warn(
            f"answers are cut at {most} tokens, and an expected one has {longest}: it cannot be "
            "right; leave `max_new_tokens` out, and there is room for each",
            stacklevel=2,
        )
    return most


def _together(example: Example) -> tuple[bool, int, str]:
    """What an example is put in order by: in that of ``batched_apart``, beside others like it.

    A batch takes as long as its longest answer, which is likely as long as the expected one; and
    prompts that begin alike are read together. Neither decides what is answered.
    """
    return bool(example.images), len(example.answer), example.prompt


def _with_open_gates(examples: Sequence[Example], gates: Mapping[str, Strength]) -> list[Example]:
    """The examples with the samples whose gates are open.

    The others would be removed from the text with markers.
    """
    return [
        attrs.evolve(
            example,
            samples={name: s for name, s in example.samples.items() if gates.get(name, 1.0) != 0},
        )
        for example in examples
    ]


def _generated(
    model: SafeModel,
    examples: Sequence[Example],
    max_new_tokens: int,
    batch_size: int,
    gate: Mapping[str, Strength],
) -> Iterator[tuple[str, float]]:
    for rows in batched_apart(examples, batch_size):
        strengths = {
            name: gate.get(name, model.gates[name]) for row in rows for name in row.samples
        }
        # A head that is to decide reads the prompt in the call.
        whole = AUTO in strengths.values()
        batch = example_inputs(model, rows) if whole else _behind_prompts(model, rows)
        end = TurnEnd.of(model, [row.prompt for row in rows])
        ending = {} if end is None else end.options({})
        out = model.generate(
            **batch, gate=dict(gate), max_new_tokens=max_new_tokens,
            do_sample=False, return_dict_in_generate=True, output_scores=True, **ending,
        )  # fmt: skip
        new = list(new_tokens(model, out.sequences, batch))
        new = new if end is None else list(map(end.cut, new))
        texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
        sure = _probabilities(model, out.sequences, out.scores, ending.get("eos_token_id"))
        yield from zip(map(str.strip, texts), sure, strict=True)


def _behind_prompts(model: SafeModel, examples: Sequence[Example]) -> Mapping[str, Any]:
    """``example_inputs``, for a call behind prompts that were read before, where it can be."""
    seen = behind_pictures(model, examples)
    return behind_prompts(model, example_inputs(model, examples)) if seen is None else seen


def _probabilities(
    model: SafeModel, tokens: Tensor, scores: Sequence[Tensor], ends: Any = None
) -> list[float]:
    """The product of each row's new tokens' probabilities, up to the first that ends it."""
    if ends is None:
        base: Any = model.base
        ends = base.generation_config.eos_token_id  # as generate
    new = tokens[:, -len(scores) :]
    ended = torch.isin(new, torch.tensor([] if ends is None else ends, device=new.device))
    after = ended.cumsum(1) - ended.long() > 0
    logs = torch.stack(
        [
            step.float().log_softmax(-1).gather(1, new[:, [index]]).squeeze(1)
            for index, step in enumerate(scores)
        ],
        dim=1,
    )  # (batch, new)
    found: list[float] = logs.masked_fill(after, 0.0).sum(1).exp().tolist()
    return found


def new_tokens(model: SafeModel, tokens: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """What ``generate`` added: all that an encoder-decoder gave, else what follows the prompt."""
    if decodes_separately(model.base):
        return tokens
    return tokens[:, model.prompt_columns(batch) :]


def choose_label(
    model: SafeModel, asked: Sequence[Example], *, batch_size: int, gate: Mapping[str, Strength]
) -> list[str]:
    """The likeliest label of each example.

    A label's likelihood is that of all its tokens and of the end behind them. Where an example is
    read at its tokens, the label whose first token is likeliest there, in the mean over them.

    Args:
        model: in eval mode.
        asked: examples with ``labels``, and with the samples whose gates are open.
        batch_size: rows at a time.
        gate: strengths by modality.
    """
    chosen = [_read_at_tokens(model, one, gate) for one in asked]
    open_ = [row for row, label in enumerate(chosen) if label is None]
    open_.sort(key=lambda row: bool(asked[row].images))  # the order of batched_apart
    pairs = [_Labelled(asked[row], label) for row in open_ for label in asked[row].labels]
    scores: list[float] = []
    for some in batched_apart(pairs, batch_size):
        scores += log_likelihoods(model, [(one.example, one.label) for one in some], gate)
    left = iter(scores)
    for row in open_:
        labels = asked[row].labels
        own = [next(left) for _ in labels]
        chosen[row] = labels[own.index(max(own))]
    return [label for label in chosen if label is not None]


@attrs.frozen
class _Labelled:
    example: Example
    label: str

    @property
    def images(self) -> Sequence[Picture]:
        """The example's."""
        return self.example.images


def log_likelihoods(
    model: SafeModel, pairs: Sequence[tuple[Example, str]], gate: Mapping[str, Strength]
) -> list[float]:
    """Log-likelihood of a label behind each example's prompt, in nats."""
    encoder, said = PromptEncoder.of(model), model.processor.said
    prompts = [
        encoder.prompt(one.prompt, one.images, sample_counts(one.samples), said(one.samples))
        for one, _ in pairs
    ]
    answers = [_answer_ids(encoder, label, one.prompt) for one, label in pairs]
    rows = [row.followed_by(answer) for row, answer in zip(prompts, answers, strict=True)]
    batch = encoder.collate(rows, model.processor.padding)
    for name in sorted({name for example, _ in pairs for name in example.samples}):
        samples = [example.samples.get(name) for example, _ in pairs]
        batch |= model.processor.modality(name, samples)
    starts = torch.tensor([len(row) - len(a) - 1 for row, a in zip(rows, answers, strict=True)])
    batch |= {
        f"{name}__{FROM}": starts
        for name in answering(model.attends)
        if f"{name}__{PRESENT}" in batch
    }
    predicted = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.bool)
    for number, (start, row) in enumerate(zip(starts.tolist(), rows, strict=True)):
        predicted[number, start : len(row) - 1] = True  # each the next token
    predicted = predicted.to(model.device)
    moved = {key: value.to(model.device) for key, value in batch.items()}
    logits = logits_at(model, model.base, {**moved, "gate": dict(gate)}, predicted)
    wanted = torch.tensor([[token] for answer in answers for token in answer], device=model.device)
    tokens = logits.float().log_softmax(-1).gather(-1, wanted).squeeze(-1)
    owner = predicted.nonzero()[:, 0]
    scores: list[float] = tokens.new_zeros(len(pairs)).index_add(0, owner, tokens).tolist()
    return scores


def _answer_ids(encoder: PromptEncoder, label: str, prompt: str) -> list[int]:
    ids = encoder.answer(label, prompt)
    if not ids:
        raise SafeError(f"labels: the answer {label!r} has no tokens")
    return ids


def _read_at_tokens(model: SafeModel, example: Example, gate: Mapping[str, Strength]) -> str | None:
    """The label that stands at the modality's tokens; None where there are none to read."""
    if not example.at_tokens or not example.samples or decodes_separately(model.base):
        return None
    batch = dict(_process_examples(model, [example], "right"))
    ids: Tensor = batch["input_ids"]
    positions = token_positions(ids[0].tolist(), model.processor.markers)
    if not positions:
        return None
    batch |= {
        f"{name}__{FROM}": torch.tensor([positions[0]])
        for name in answering(model.attends)
        if name in example.samples
    }
    moved: dict[str, Any] = {key: value.to(model.device) for key, value in batch.items()}
    at = torch.zeros_like(moved["input_ids"], dtype=torch.bool)
    at[0, list(positions)] = True
    logits = logits_at(model, model.base, {**moved, "gate": dict(gate)}, at)  # (tokens, vocabulary)
    firsts = torch.tensor(first_ids(model.tokenizer, example.labels), device=model.device)
    read = class_logits(logits, firsts).log_softmax(-1).mean(0)  # (labels,)
    return example.labels[int(read.argmax())]


def answer_without(
    ask: Callable[..., list[str]], examples: Sequence[Example], modality: str, *, label: str
) -> list[str]:
    """The answer to each example without ``modality``; each distinct question is asked once.

    Args:
        ask: ``answer`` with its model and options bound.
        examples: questions and their samples.
        modality: what is left out.
        label: what the progress callback shows.
    """
    alone = without_modality(examples, modality)
    distinct = {question_key(example): example for example in reversed(alone)}
    given = ask(list(distinct.values()), label=label)
    by_question = dict(zip(distinct, given, strict=True))
    return [by_question[question_key(example)] for example in alone]


def question_key(example: Example) -> tuple[object, ...]:
    """What two examples have in common that a model answers alike."""
    place = example.place if example.samples else ""
    return example.prompt, example.labels, place, example.images


def without_modality(examples: Sequence[Example], modality: str) -> list[Example]:
    """The examples without their samples of ``modality``."""
    return [
        attrs.evolve(example, samples=_without(example.samples, modality)) for example in examples
    ]


def _without(samples: Mapping[str, Sample], modality: str) -> Mapping[str, Sample]:
    return {name: sample for name, sample in samples.items() if name != modality}


def with_shuffled_samples(
    examples: Sequence[Example], modality: str, *, seed: int = 0
) -> list[Example]:
    """The examples, each with the samples of another one that has as many.

    Of another answer wherever that is possible.
    """
    found = list(examples)
    counts = [len(each_of(example.samples[modality])) for example in examples]
    for count in dict.fromkeys(counts):
        rows = [row for row, own in enumerate(counts) if own == count]
        order = derangement([normalise(examples[row].answer) for row in rows], seed=seed)
        for row, other in zip(rows, order, strict=True):
            others = examples[rows[other]].samples[modality]
            own = {**examples[row].samples, modality: others}
            found[row] = attrs.evolve(examples[row], samples=own)
    return found


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
    for index, row in enumerate(order):
        found[row] = order[(index + step) % len(labels)]
    return found
