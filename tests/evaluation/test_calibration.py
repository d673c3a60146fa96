"""Calibration, probability of an answer, token F1 and cross-modal alignment."""

import json

import numpy as np
import pytest
import torch

from safe_framework.evaluation.alignment import cross_modal
from safe_framework.evaluation.answers import answer, answer_with_confidence, model_inputs
from safe_framework.evaluation.evaluate import evaluate
from safe_framework.evaluation.metrics import calibration, token_f1
from safe_framework.evaluation.results import Evaluation
from safe_framework.evaluation.summary import sections


def test_honest_confidence_has_no_error():
    """Law: answers of probability 0.75 that are right three times in four have an error of 0."""
    found = calibration([0.75] * 4, [1, 1, 1, 0])
    assert found.error.value == pytest.approx(0)
    assert (found.bins[0].accuracy, found.bins[0].n) == (0.75, 4)


def test_the_error_is_the_mean_gap_of_the_bins():
    """Law: gaps do not cancel between bins, and count by their sizes."""
    found = calibration([0.95, 0.95, 0.95, 0.05], [0, 0, 0, 1])
    assert found.error.value == pytest.approx(0.95)
    assert len(found.bins) == 2
    assert found.confidence.value == pytest.approx(0.725)


def test_its_interval_holds_it():
    """Law: the interval comes from whole examples: wide for few, and narrower for many."""
    random = np.random.default_rng(0)

    def width(count):
        sure = random.uniform(size=count)
        error = calibration(sure.tolist(), random.uniform(size=count) < sure, resamples=200).error
        return error.high - error.low

    assert width(2000) < width(50)


def test_certainty_of_one_is_in_the_last_bin():
    """Law: a probability of exactly 1 belongs to a bin; none is an error."""
    assert calibration([1.0], [1]).error.value == 0
    with pytest.raises(ValueError, match="at least one"):
        calibration([], [])


def test_an_answers_probability_is_that_of_its_tokens(model, examples):
    """Law: the probability of one new token is the softmax of the logits at the last position."""
    found = answer_with_confidence(model, examples[:3], max_new_tokens=1)
    given = model_inputs(model, [e.prompt for e in examples[:3]], [e.samples for e in examples[:3]])
    best = model(**given).logits[:, -1].softmax(-1).amax(-1)
    torch.testing.assert_close(torch.tensor([sure for _, sure in found]), best)


def test_what_follows_the_end_does_not_count(model, examples, monkeypatch):
    """Law: padding after an answer's end leaves its probability as it is."""
    whole = answer_with_confidence(model, examples[:6], max_new_tokens=6, batch_size=6)
    alone = [answer_with_confidence(model, [one], max_new_tokens=6)[0] for one in examples[:6]]
    assert [text for text, _ in whole] == [text for text, _ in alone]
    np.testing.assert_allclose([p for _, p in whole], [p for _, p in alone], rtol=1e-3)
    assert answer(model, examples[:6], max_new_tokens=6) == [text for text, _ in whole]


@pytest.mark.parametrize(
    ("given", "right", "expected"),
    [("piano", "Piano.", 1.0), ("grand piano", "piano", 2 / 3), ("flute", "piano", 0.0),
     ("", "piano", 0.0), ("a a b", "a b b", 2 / 3)],
)  # fmt: skip
def test_token_f1_counts_shared_words(given, right, expected):
    """Law: it is the harmonic mean of precision and recall of the normalised words."""
    assert token_f1([given], [right])[0] == pytest.approx(expected)


def test_tokens_that_point_to_their_answers_are_aligned(model, examples):
    """Law: a projector that gives the answer's own embedding has cosine 1; a reversed one -1."""
    embed = model.base.get_input_embeddings().weight
    red, blue = (embed[model.tokenizer(word)["input_ids"][0]] for word in ("red", "blue"))
    projector = model.modality("touch").projector.linear
    with torch.no_grad():
        projector.weight.zero_()
        projector.bias.zero_()
        projector.weight[:, 0] = red - blue
    found = cross_modal(model, "touch", examples)
    assert found.cosine.value == pytest.approx(1, abs=1e-4)
    assert found.nearest.value == 1
    with torch.no_grad():
        projector.weight.neg_()
    assert cross_modal(model, "touch", examples).cosine.value == pytest.approx(-1, abs=1e-4)


def test_one_answer_has_no_alignment(model, examples):
    """Law: where all answers are the same there is no alignment, rather than a made-up one."""
    assert cross_modal(model, "touch", examples[::2]) is None


def test_an_evaluation_holds_them_and_an_older_file_loads(model, examples, texts):
    """Law: new measures are in metrics.json, and a file without them loads without them."""
    found = evaluate(
        model, modality="touch", train=examples, test=examples, texts=texts, max_new_tokens=2
    )
    assert Evaluation.from_json(found.to_json()) == found
    assert found.calibration is not None
    assert any(section.title == "Confidence and alignment" for section in sections(found))
    older = json.loads(found.to_json())
    for name in ("calibration", "alignment"):
        del older[name]
    del older["gain"]["token_f1"]
    for row in older["answers"]:
        del row["confidence"]
    for kind in ("overall", "relevant"):
        del older["retention"][kind]["shares"], older["retention"][kind]["lengths"]
    loaded = Evaluation.from_json(json.dumps(older))
    assert loaded.gain.accuracy == found.gain.accuracy
    assert loaded.calibration is None
    assert all(section.title != "Confidence and alignment" for section in sections(loaded))
