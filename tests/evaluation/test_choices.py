"""Closed answers by likelihood, captions by their words."""

import attrs
import numpy as np
import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example
from safe_framework.data.tasks import CAPTIONS
from safe_framework.evaluation.answers import answer, log_likelihoods
from safe_framework.evaluation.gain import MEASURES, by_dataset, without_captions
from safe_framework.evaluation.results import Evaluation
from safe_framework.evaluation.summary import headlines
from tests.evaluation.conftest import answered

LABELS = ("red", "the cat sat", "blue")


def test_a_likelihood_is_that_of_every_token_and_the_end(
    model: SafeModel, examples: list[Example]
) -> None:
    """Law: a label's score is the sum of its tokens' log-probabilities, its end among them."""
    model.eval()
    pairs = [(example, label) for example in examples[:2] for label in LABELS]
    with torch.no_grad():
        scores = log_likelihoods(model, pairs, {})
        for (example, label), score in zip(pairs, scores, strict=True):
            prompt = model.tokenizer(example.prompt)["input_ids"]
            tokens = [*model.tokenizer(label)["input_ids"], model.tokenizer.eos_token_id]
            given = model.processor(text=[f"{example.prompt} {label} end"], **{
                name: [sample] for name, sample in example.samples.items()
            })  # fmt: skip
            words = model(**given).logits[0].log_softmax(-1)
            positions = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
            expected = sum(words[p, t].item() for p, t in zip(positions, tokens, strict=True))
            assert score == pytest.approx(expected, abs=1e-4)


def test_the_likeliest_label_is_the_answer(model: SafeModel, examples: list[Example]) -> None:
    """Law: a closed row is answered with its best label, an open one in its batch as ever."""
    model.eval()
    shut = [attrs.evolve(e, task="classification", labels=LABELS) for e in examples]
    mixed = [shut[0], examples[1], shut[2]]
    with torch.no_grad():
        pairs = [(e, label) for e in shut for label in LABELS]
        scores = np.reshape(log_likelihoods(model, pairs, {}), (len(shut), len(LABELS)))
        assert answer(model, shut, batch_size=5) == [LABELS[i] for i in scores.argmax(1)]
        alone = answer(model, [examples[1]])
        given = answer(model, mixed)
    assert given[1] == alone[0]
    assert given[::2] == [LABELS[i] for i in scores[[0, 2]].argmax(1)]


def test_a_shut_gate_chooses_as_the_base(model: SafeModel, examples: list[Example]) -> None:
    """Law: at gate 0 the choice is the one without a sample."""
    model.eval()
    shut = [attrs.evolve(e, task="classification", labels=LABELS) for e in examples]
    without = [attrs.evolve(e, samples={}) for e in shut]
    with torch.no_grad():
        assert answer(model, shut, gate={"touch": 0.0}) == answer(model, without)


def test_words_in_common_ignore_order_and_case() -> None:
    """Law: the score is 1 for the same words, 0 for none in common, and counts repeats."""
    given = ["Sat a cat.", "dog", "", "a a"]
    _, score = MEASURES[CAPTIONS]
    assert score(given, ["a cat sat", "cat", "cat", "a"]).tolist() == [1, 0, 0, 2 / 3]
    assert score([""], ["..."]).tolist() == [0]


def test_captions_are_measured_apart() -> None:
    """Law: a dataset's scores are of its rows alone; one dataset of questions has no table."""
    rows = [answered(n, "piano", "piano" if n else "flute") for n in range(4)]
    captions = [
        attrs.evolve(answered(9, "a cat sat", "a cat"), task="captioning", dataset="captions")
    ]
    assert by_dataset(rows, resamples=10, seed=0) == {}
    found = by_dataset([*rows, *captions], resamples=10, seed=0)
    assert {name: one.score.value for name, one in found.items()} == {
        "question_answering": 0.75,
        "captions": pytest.approx(0.8),
    }
    assert without_captions([*rows, *captions]) == rows
    assert without_captions(captions) == captions


def test_captions_alone_are_summed_up_by_their_words(evaluation: Evaluation) -> None:
    """Law: where all rows are captions, the first number is that of their words."""
    rows = [
        attrs.evolve(answered(n, "a cat sat", "a cat" if n else "dog"), task="captioning")
        for n in range(4)
    ]
    tokens = by_dataset(rows, resamples=10, seed=0)
    assert headlines(evaluation)[0].meaning.endswith("without audio")
    headline = headlines(attrs.evolve(evaluation, datasets=tokens))[0]
    assert (headline.number, headline.context) == ("60.0 %", "without audio 0 % · shuffled 0 %")
    assert "4 unseen audio examples" in headline.meaning
