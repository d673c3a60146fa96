"""What evaluation says of a base that sees, on a tiny LLaVA with a sense of two numbers."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example
from safe_framework.evaluation.alignment import (
    ENTERING,
    IMAGE_FEATURES,
    PictureAlignment,
    picture_alignment,
    picture_features,
)
from safe_framework.evaluation.answers import (
    answer,
    example_inputs,
    log_likelihoods,
    placeholders,
    word_positions,
)
from safe_framework.evaluation.both_senses import (
    OTHER_PICTURE,
    OTHER_SAMPLE,
    PICTURE_ALONE,
    SAMPLE_ALONE,
    with_blank_pictures,
    with_shuffled_pictures,
)
from safe_framework.evaluation.evaluate import evaluate
from safe_framework.evaluation.results import Evaluation
from safe_framework.evaluation.seeing import picture_questions
from safe_framework.evaluation.side_by_side import side_by_side
from safe_framework.evaluation.sweep import read_sweeps, sweep, write_sweep
from safe_framework.interfaces.projector import Projector
from safe_framework.interfaces.types import Frames, Tokens
from tests.evaluation.conftest import AddTokens, PairEncoder
from tests.evaluation.pictured import (
    COLOURS,
    WIDTH,
    examples,
    sample,
    seeing_model,
    seen,
    texts,
)
from tests.support.seeing import llava
from tests.support.tolerance import rounding

OPTIONS = {"max_new_tokens": 2, "batch_size": 5, "bootstrap": 40}


@pytest.fixture(scope="module")
def model() -> SafeModel:
    """A base that sees and can touch."""
    return seeing_model()


@pytest.fixture(scope="module")
def found(model: SafeModel) -> Evaluation:
    """Everything that is measured on questions with and without pictures."""
    rows = examples()
    return evaluate(model, modality="touch", train=rows, test=rows, texts=texts(), **OPTIONS)


def test_another_picture_moves_the_answers(model: SafeModel) -> None:
    """Law: a row's picture reaches the base: with another one, its answers' probabilities move."""
    model.eval()
    row = examples()[1]
    others = [attrs.evolve(row, images=(seen(colour),), samples={}) for colour in COLOURS]
    with torch.no_grad():
        logits = [model(**example_inputs(model, [one])).logits for one in others]
    assert all(not torch.equal(logits[0], one) for one in logits[1:])


def test_answers_are_in_the_order_of_the_examples(model: SafeModel) -> None:
    """Law: rows with pictures and rows without are answered apart, and come back in order."""
    model.eval()
    rows = examples()
    together = answer(model, rows, max_new_tokens=3, batch_size=5)
    alone = [answer(model, [row], max_new_tokens=3)[0] for row in rows]
    assert len(set(alone)) > 1
    assert together == alone


def test_labels_are_scored_beside_the_picture(model: SafeModel) -> None:
    """Law: a closed answer is chosen by likelihoods that depend on the picture, in any batch."""
    model.eval()
    pairs = [(row, label) for row in examples()[1::2][:3] for label in ("red", "a dog")]
    closed = [
        attrs.evolve(row, task="classification", labels=("red", "a dog")) for row in examples()
    ]
    with torch.no_grad():
        together = log_likelihoods(model, pairs, {"touch": 0.0})
        alone = [log_likelihoods(model, [pair], {"touch": 0.0})[0] for pair in pairs]
        chosen = answer(model, closed, batch_size=5)
        apart = [answer(model, [row])[0] for row in closed]
    vocabulary = model.base.get_output_embeddings().out_features
    sums = 2 * (12 * WIDTH) + WIDTH + vocabulary  # two layers, the head, and a softmax
    most = rounding(sums, torch.tensor(alone))
    np.testing.assert_allclose(together, alone, rtol=0, atol=most)
    assert len(set(alone[::2])) == 3  # the same question and label beside three pictures
    assert chosen == apart


def test_placeholders_are_not_compared(model: SafeModel) -> None:
    """Law: next tokens are counted at words, never at the places of a picture."""
    batch = example_inputs(model, [examples()[1]])
    held = placeholders(model, batch["input_ids"])
    words = word_positions(model, batch)
    assert held.sum() == 4
    assert not (held & words).any()
    assert (held | words).all()


def test_retention_reads_texts_with_their_pictures(found: Evaluation) -> None:
    """Law: texts with and without pictures are compared, and absent is the base on all of them."""
    assert found.retention.absent.texts == len(texts())
    assert found.retention.absent.identical
    assert found.gate_zero.identical
    assert found.gate_zero.examples == 12 + 6  # test rows, and picture questions beside samples
    assert found.retention.overall.agreement.value < 1


def test_absent_sense_leaves_the_seeing_bit_for_bit(found: Evaluation) -> None:
    """Law: without a sample, logits and answers to picture questions are the base's."""
    seen = found.seeing
    assert seen is not None
    assert seen.identical
    assert [row.absent for row in seen.questions] == [row.base for row in seen.questions]
    assert seen.scores.absent.unchanged.value == 1.0
    assert seen.scores.absent.over_base.value == 0.0


def test_every_picture_question_is_asked_in_every_way(found: Evaluation) -> None:
    """Law: each row with a picture and an answer, beside each kind of sample and its own."""
    assert found.seeing is not None
    rows = picture_questions(texts())
    assert [row.place for row in found.seeing.questions] == [row.place for row in rows]
    assert {row.place for row in rows} == {f"retention_test.jsonl:{n + 1}" for n in range(6)}
    for row, given in zip(found.seeing.questions, rows, strict=True):
        assert set(row.irrelevant) == {"silent", "noise", "shuffled"}
        assert (row.relevant is not None) == bool(given.samples)
        assert row.expected == (given.answer,)
    assert found.seeing.scores.relevant is not None
    assert found.seeing.scores.relevant.accuracy.n == 3


def test_a_loud_sense_is_seen_to_change_answers(found: Evaluation) -> None:
    """Law: answers that differ from the base's are counted, to the letter."""
    assert found.seeing is not None
    rows = found.seeing.questions
    for kind, score in found.seeing.scores.irrelevant.items():
        same = np.mean([row.irrelevant[kind] == row.base for row in rows])
        assert score.unchanged.value == pytest.approx(same)
    kinds = found.seeing.scores.irrelevant.values()
    mean = np.mean([kind.unchanged.value for kind in kinds])
    assert found.seeing.scores.overall.unchanged.value == pytest.approx(mean)
    assert mean < 1


@pytest.mark.filterwarnings("ignore:answers are cut at 2 tokens")
def test_the_retention_score_is_the_ratio_of_accuracies() -> None:
    """Law: the specification's score is the model's VQA accuracy over the base's."""
    model = seeing_model()
    rows, asked = examples(), texts()
    model.eval()
    first = picture_questions(asked)
    base = answer(model, [Example(r.text, "", images=r.images) for r in first], max_new_tokens=2)
    right = {row.place: said for row, said in zip(first, base, strict=True)}
    known = [  # so that the base is right about all but the last
        attrs.evolve(row, answer=right[row.place]) if row.place in right else row for row in asked
    ]
    known[-1] = attrs.evolve(known[-1], answer="never said")
    found = evaluate(model, modality="touch", train=rows, test=rows, texts=known, **OPTIONS).seeing
    assert found is not None
    assert found.scores.base.value == pytest.approx(5 / 6)
    assert found.scores.absent.retention is not None
    assert found.scores.absent.retention.value == 1.0
    assert found.scores.absent.retention.low == found.scores.absent.retention.high == 1.0
    for score in (found.scores.overall, *found.scores.irrelevant.values()):
        assert score.retention is not None
        assert score.retention.value == pytest.approx(score.accuracy.value / (5 / 6))
        assert score.over_base.value == pytest.approx(score.accuracy.value - 5 / 6)


def test_a_silent_sense_keeps_all_answers() -> None:
    """Law: with a delta of zero every answer beside every sample is the base's."""
    model, rows = seeing_model(scale=0.0), examples()
    found = evaluate(model, modality="touch", train=rows, test=rows, texts=texts(), **OPTIONS)
    assert found.seeing is not None
    assert found.seeing.scores.overall.unchanged.value == 1.0
    assert found.seeing.scores.relevant is not None
    assert found.seeing.scores.relevant.unchanged.value == 1.0


@pytest.mark.filterwarnings("ignore:answers are cut at 2 tokens")
def test_several_people_are_scored_as_vqa_does(model: SafeModel) -> None:
    """Law: with ``answers``, accuracy is the benchmark's, not an exact match."""
    rows = examples()
    asked = [
        attrs.evolve(row, answers=("never said",) * 8 + ("nor this",) * 2) if row.answer else row
        for row in texts()
    ]
    base = evaluate(model, modality="touch", train=rows, test=rows, texts=asked, **OPTIONS)
    assert base.seeing is not None
    assert base.seeing.scores.base.value == 0.0
    assert base.seeing.scores.overall.retention is None
    first = base.seeing.questions[0]
    shared = [
        attrs.evolve(row, answers=(first.base,) * 2 + ("never said",) * 8)
        if row.place == first.place
        else row
        for row in asked
    ]
    again = evaluate(model, modality="touch", train=rows, test=rows, texts=shared, **OPTIONS)
    assert again.seeing is not None
    assert again.seeing.scores.base.value == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10 / 6)


def test_kinds_are_scored_apart(found: Evaluation) -> None:
    """Law: a row's ``kind`` makes tables by kind, of test rows and of picture questions."""
    assert found.by == "kind"
    assert {kind: one.score.n for kind, one in found.kinds.items()} == {"touch": 6, "both": 6}
    assert found.seeing is not None
    assert {k: one.base.n for k, one in found.seeing.kinds.items()} == {"told": 3, "name": 3}
    right = [row.right for row in found.answers if row.kind == "both"]
    assert found.kinds["both"].score.value == pytest.approx(np.mean(right))


def test_each_sense_alone_is_a_baseline(found: Evaluation) -> None:
    """Law: rows with a picture and a sample are asked with either missing, and either wrong."""
    assert found.both_senses is not None
    names = {PICTURE_ALONE, OTHER_SAMPLE, SAMPLE_ALONE, OTHER_PICTURE}
    assert set(found.both_senses.scores.baselines) == names
    assert found.both_senses.scores.accuracy.n == 6
    assert set(found.both_senses.kinds) == {"both"}
    for row in found.answers:
        assert (row.blank_picture is not None) == (row.other_picture is not None)
        assert (row.blank_picture is not None) == (row.kind == "both")


def test_blank_pictures_show_nothing_of_the_row() -> None:
    """Law: a blank picture is as large as the row's and one grey."""
    row = attrs.evolve(examples()[1], images=(seen("red"), seen("blue")))
    blank = with_blank_pictures([row])[0].images
    assert len(blank) == 2
    assert {picture.open().size for picture in blank} == {(8, 8)}
    assert {len(picture.open().getcolors()) for picture in blank} == {1}
    assert blank[0] == blank[1]


def test_shuffled_pictures_are_those_of_other_answers() -> None:
    """Law: each row gets as many pictures as it had, of a row with another answer."""
    rows = [row for row in examples() if row.images]
    by_picture = {row.place: row for row in rows}
    moved = with_shuffled_pictures(rows, seed=1)
    assert [row.place for row in moved] == list(by_picture)
    assert sorted(p.digest for r in moved for p in r.images) == sorted(
        p.digest for r in rows for p in r.images
    )
    lone = attrs.evolve(rows[0], images=(seen("red"), seen("blue")), place="lone")
    assert with_shuffled_pictures([*rows, lone])[-1].images == lone.images


def test_alignment_is_measured_against_the_pictures(found: Evaluation) -> None:
    """Law: rows with a picture and a sample are compared, own picture against all others."""
    alike = found.picture_alignment
    assert alike is not None
    assert alike.pictures == len(COLOURS)
    assert alike.cosine.n == 9  # six test rows and three picture questions
    assert alike.margin.value == pytest.approx(alike.cosine.value - alike.shuffled.value)
    assert alike.source == IMAGE_FEATURES


def test_alignment_finds_tokens_that_are_their_pictures() -> None:
    """Law: tokens that are the picture's own features have a cosine of 1 and find it each time."""
    knowing = SafeModel(*llava())
    rows = [row for row in examples() if row.images]
    features, _ = picture_features(knowing, rows, WIDTH)
    assert isinstance(features, torch.Tensor)

    class Copied(Projector):
        """The features of the row whose first number it is given."""

        def forward(self, frames: Frames) -> Tokens:
            numbers = frames.values[..., 0].round().long()  # (batch, frames)
            return Tokens(features[numbers], frames.mask)

    knowing.add_modality("touch", encoder=PairEncoder(), projector=Copied(), fusion=AddTokens())
    numbered = [
        attrs.evolve(row, samples={"touch": np.array([number, 0], np.float32)})
        for number, row in enumerate(rows)
    ]
    alike = picture_alignment(knowing, "touch", numbered, resamples=20)
    assert isinstance(alike, PictureAlignment)
    assert alike.cosine.value == pytest.approx(1.0, abs=1e-5)
    assert alike.nearest.value == 1.0
    assert alike.margin.value > 0


def test_image_features_are_what_stands_at_the_placeholders(model: SafeModel) -> None:
    """Law: a base without ``get_image_features`` is asked for its states there: the same."""
    rows = [row for row in examples() if row.images][:3]
    known = picture_features(model, rows, WIDTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.base), "get_image_features", None)
        found = picture_features(model, rows, WIDTH)
    assert not isinstance(known, str)
    assert not isinstance(found, str)
    assert found[1] == ENTERING
    torch.testing.assert_close(found[0], known[0])


def test_alignment_says_why_it_is_missing(model: SafeModel) -> None:
    """Law: one picture for all rows, or vectors of another width, are named as the reason."""
    rows = [attrs.evolve(row, images=(seen("red"),)) for row in examples()]
    assert "same picture" in str(picture_alignment(model, "touch", rows))
    pictured = [row for row in examples() if row.images]
    assert "LlavaForConditionalGeneration" in str(picture_features(model, pictured, WIDTH + 1))
    assert picture_alignment(model, "touch", examples(pictures=False)) is None


def test_a_sweep_asks_about_pictures_at_every_gate(model: SafeModel, tmp_path: Path) -> None:
    """Law: at gate 0 every picture answer is the base's; the sweep is read as it was written."""
    found = sweep(
        model, modality="touch", test=examples(), texts=texts(), gates=(0, 1),
        max_new_tokens=2, resamples=10,
    )  # fmt: skip
    shut, wide = (point.seeing for point in found.points)
    assert shut is not None
    assert wide is not None
    assert shut.unchanged.value == 1.0
    assert shut.unchanged.n == wide.unchanged.n == 6
    assert wide.unchanged.value < 1.0
    write_sweep(tmp_path, found)
    assert read_sweeps(tmp_path) == {"touch": found}
    plain = [attrs.evolve(row, images=()) for row in texts()]
    alone = sweep(
        model, modality="touch", test=examples(pictures=False), texts=plain, gates=(0,),
        max_new_tokens=1, resamples=2,
    )  # fmt: skip
    assert '"seeing"' not in write_sweep(tmp_path, alone).read_text("utf-8")


def test_metrics_json_comes_back_equal(found: Evaluation) -> None:
    """Law: what was written is read again, without the pictures themselves."""
    text = found.to_json()
    assert Evaluation.from_json(text) == found
    assert "Picture" not in text


def test_runs_without_pictures_say_nothing_of_them(model: SafeModel) -> None:
    """Law: where no row has a picture, no field of seeing is written."""
    rows = [attrs.evolve(row, fields={}) for row in examples(pictures=False)]
    plain = [attrs.evolve(row, images=(), fields={}) for row in texts()]
    found = evaluate(model, modality="touch", train=rows, test=rows, texts=plain, **OPTIONS)
    text = found.to_json()
    for name in ("seeing", "both_senses", "kinds", '"by"', "picture", "unmeasured", '"kind"'):
        assert name not in text


def test_two_answers_about_a_picture_are_compared_at_words(model: SafeModel) -> None:
    """Law: side by side, both see the picture, and agreement counts the question's words alone."""
    options = {"images": [seen("red")], "max_new_tokens": 2}
    shut = side_by_side(model, "touch", "what is this", sample(0), gate=0.0, **options)
    assert shut.bitwise
    assert shut.agreement == 1.0
    wide = side_by_side(model, "touch", "what is this", sample(0), gate=1.0, **options)
    assert not wide.bitwise
    words = len(model.tokenizer("what is this")["input_ids"])
    assert (wide.agreement * words) == pytest.approx(round(wide.agreement * words))
    other = {**options, "images": [seen("blue")]}
    blue = side_by_side(model, "touch", "what is this", None, **other)
    assert blue.bitwise
    assert blue.base != shut.base
