"""What a gate sweep promises, on a tiny base with a new modality."""

import attrs
import pytest
import torch

from safe_framework.cli.sweep import recommendation
from safe_framework.errors import DataError
from safe_framework.evaluation.answers import answer, model_inputs
from safe_framework.evaluation.retention import retention
from safe_framework.evaluation.sweep import read_sweeps, sweep, with_encoded_frames, write_sweep
from safe_framework.utils.tensors import bitwise_equal


@pytest.fixture
def swept(model, examples, texts):
    """Three gates of the untrained modality."""
    return sweep(
        model, modality="touch", test=examples, texts=texts, gates=[0.5, 1.0],
        max_new_tokens=2, batch_size=5, resamples=20,
    )  # fmt: skip


def with_merits(swept, *merits):
    """The sweep with these accuracies and agreements at as many gates, spread from 0 to 1."""
    points = []
    for number, (right, kept) in enumerate(merits):
        like = swept.points[0]
        agreement = attrs.evolve(like.kept, agreement=attrs.evolve(like.kept.agreement, value=kept))
        accuracy = attrs.evolve(like.accuracy, value=right)
        gained = attrs.evolve(like.over_base, value=right, low=right)  # the first is 0
        gate = number / (len(merits) - 1)
        points.append(
            attrs.evolve(like, gate=gate, accuracy=accuracy, over_base=gained, kept=agreement)
        )
    return attrs.evolve(swept, points=tuple(points), budget=0.9)


def test_gate_zero_is_always_there_and_keeps_everything(swept):
    """Law: the first point is gate 0, gains nothing and differs at no position."""
    assert [point.gate for point in swept.points] == [0.0, 0.5, 1.0]
    shut = swept.points[0]
    assert shut.kept.agreement.value == 1.0
    assert shut.kept.kl.value == 0.0
    assert shut.over_base.value == 0.0


def test_a_wider_gate_changes_more(swept):
    """Law: a noisy adapter moves the texts more at gate 1 than at 0.5, and there more than at 0."""
    moved = [point.kept.kl.value for point in swept.points]
    assert 0 < moved[1] < moved[2]


def test_gate_one_is_what_the_evaluation_measures(model, examples, texts, swept):
    """Law: on one batch of texts, the point at 1 agrees with ``retention`` and ``answer``.

    Their irrelevant samples are drawn otherwise, but for silence, which is the same for all.
    """
    only = sweep(
        model, modality="touch", test=examples[:1], texts=texts, gates=[1.0], max_new_tokens=2
    )
    one = retention(model, "touch", texts, examples[:1])
    assert only.points[-1].kept.positions == one.overall.positions
    assert swept.at(1.0).answers == tuple(answer(model, examples, max_new_tokens=2))


def test_encoding_once_changes_no_bit(model, examples):
    """Law: a batch with finished frames gives the very logits of the batch with its samples."""
    given = model_inputs(model, [e.prompt for e in examples], [e.samples for e in examples])
    assert bitwise_equal(
        model(**given).logits, model(**with_encoded_frames(model, "touch", given)).logits
    )


def test_the_model_is_left_as_it_was(model, examples, texts):
    """Law: gate and mode of the model are what they were before the sweep."""
    model.train()
    model.set_gate(0.25)
    sweep(model, modality="touch", test=examples, texts=texts, gates=[1.0], max_new_tokens=1)
    assert model.training
    assert model.gates == {"touch": 0.25}


def test_the_recommended_gate_gains_most_within_the_budget(swept):
    """Law: no gate below the budget is recommended, however much it gains."""
    found = with_merits(swept, (0.0, 1.0), (0.4, 0.95), (0.8, 0.8))
    assert found.recommended.gate == 0.5
    assert 'set_gate(0.5, "touch")' in recommendation(found)


def test_gain_and_retention_count_together(swept):
    """Law: within the budget the product of gain and share kept decides, not the gain alone."""
    assert with_merits(swept, (0.0, 1.0), (0.78, 1.0), (0.8, 0.91)).recommended.gate == 0.5
    assert with_merits(swept, (0.0, 1.0), (0.6, 1.0), (0.8, 0.91)).recommended.gate == 1.0


DEAF = [
    [(0.0, 1.0), (0.0, 0.998), (0.4, 0.89), (0.8, 0.8)],  # heard only below the budget
    [(0.0, 1.0), (0.0, 0.998), (0.0, 0.95)],  # never heard
    [(0.0, 1.0), (-0.1, 0.99)],  # heard to no good
]


@pytest.mark.parametrize("merits", DEAF)
def test_no_gate_is_recommended_at_which_the_sense_is_deaf(swept, merits):
    """Golden text: nothing is gained within the budget, and what the next best would keep."""
    found = with_merits(swept, *merits)
    assert found.recommended is None
    line = recommendation(found).splitlines()[1]
    expected = "no gate that keeps at least 90.0 % of tokens gains anything"
    more = ", nor does any other: the sense is not heard"
    if merits is DEAF[0]:
        more = ": gate 0.666667 gains +40.0 points and keeps 89.0 %; to allow that, --budget 0.89"
    assert line == expected + more
    assert "set_gate" not in recommendation(found)


def test_a_gain_that_may_be_chance_is_none(swept):
    """Law: a gate whose interval of the gain touches 0 is not recommended."""
    found = with_merits(swept, (0.0, 1.0), (0.4, 0.95))
    unsure = attrs.evolve(found.points[1].over_base, low=0.0)
    points = (found.points[0], attrs.evolve(found.points[1], over_base=unsure))
    assert attrs.evolve(found, points=points).recommended is None


@pytest.mark.parametrize(("split", "told"), [("test", "name `validation`"), ("validation", "not")])
def test_the_rows_that_a_gate_was_chosen_on_are_named(swept, split, told):
    """Law: advice from test rows says that it is, and how to choose on others."""
    found = attrs.evolve(with_merits(swept, (0.0, 1.0), (0.4, 0.95)), split=split)
    assert told in recommendation(found).splitlines()[-1]


def test_of_equal_gates_the_smaller_is_recommended(swept):
    """Law: where two gates gain and keep the same, the one nearer the base is chosen."""
    assert with_merits(swept, (0.0, 1.0), (0.5, 0.95), (0.5, 0.95)).recommended.gate == 0.5


def test_the_front_holds_what_nothing_dominates(swept):
    """Law: a point is off the front exactly if another keeps and gains at least as much."""
    found = with_merits(swept, (0.0, 1.0), (0.4, 0.7), (0.5, 0.9), (0.9, 0.6))
    assert [point.accuracy.value for point in found.front] == [0.0, 0.5, 0.9]


def test_sweeps_come_back_equal(swept, tmp_path):
    """Law: what is read is what was written, and another modality's sweep stays."""
    other = attrs.evolve(swept, modality="smell")
    write_sweep(tmp_path, swept)
    write_sweep(tmp_path, other)
    assert read_sweeps(tmp_path) == {"touch": swept, "smell": other}


def test_a_broken_file_says_what_to_do(tmp_path):
    """Law: a sweep that cannot be read is an error with a hint, not an empty sweep."""
    (tmp_path / "sweep.json").write_text('{"touch": {"points": 3}}')
    with pytest.raises(DataError, match=r"cannot be read as a gate sweep\nhint: delete it"):
        read_sweeps(tmp_path)


@pytest.mark.parametrize("wrong", [{"gates": [1.5]}, {"budget": -1}, {"test": []}, {"texts": []}])
def test_what_cannot_be_measured_is_refused(model, examples, texts, wrong):
    """Law: a gate or budget outside 0 to 1, or no data, is an error before anything runs."""
    with pytest.raises(DataError, match=r"must be from 0 to 1|nothing to measure"):
        sweep(model, **{"modality": "touch", "test": examples, "texts": texts, **wrong})


def test_the_sweep_takes_no_gradient(model, examples, texts, swept):
    """Law: nothing of a sweep is kept for a backward pass."""
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
