"""Counterfactual retention: texts, distractors, and the loss."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.core.segments import is_segments
from safe_framework.interfaces.types import Frames
from safe_framework.training.retention.counterfactual import CounterfactualRetention
from tests.support.tolerance import rounding
from tests.support.toys import HIDDEN, VOCABULARY
from tests.training.conftest import KINDS, loss_of, perturb
from tests.training.test_teacher import states_of


def test_a_fresh_modality_loses_nothing(
    model: SafeModel, retention: CounterfactualRetention
) -> None:
    """Law: the loss of a fresh modality is 0, but for the rounding of padded texts."""
    ((weight, method),) = [(entry.weight, entry.method) for entry in retention.methods]
    # A divergence is the difference of two logarithms of sums over the vocabulary.
    largest = weight * method.temperature * method.temperature * math.log(VOCABULARY)
    for step in range(4):
        assert abs(loss_of(retention, step).item()) <= rounding(HIDDEN + VOCABULARY, largest)


def test_a_trained_modality_loses(model: SafeModel, retention: CounterfactualRetention) -> None:
    """Law: once the modality changes predictions, the loss is above 0."""
    perturb(model)
    assert loss_of(retention, 0).item() > 0.1


def test_the_gradient_reaches_the_adapters_alone(
    model: SafeModel, retention: CounterfactualRetention
) -> None:
    """Law: fusion and projector get a gradient; base and encoder get none."""
    perturb(model)
    loss_of(retention, 0).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    trained = {name for name in model.trainable_parameters() if not is_segments(name)}
    assert reached == {f"modalities.{name}" for name in trained}  # there is no second sample


def test_the_weight_scales_the_loss(model: SafeModel, retention: CounterfactualRetention) -> None:
    """Law: the loss is the sum of the methods' penalties times their weights."""
    perturb(model)
    once = loss_of(retention, 0)
    retention.methods = [*retention.methods, *retention.methods]
    torch.testing.assert_close(loss_of(retention, 0), 2 * once)


def test_a_step_is_a_function_of_its_number(
    model: SafeModel, retention: CounterfactualRetention
) -> None:
    """Law: texts and samples depend on seed and step alone, not on what was drawn before."""
    perturb(model)
    first = [loss_of(retention, step).item() for step in range(4)]
    torch.manual_seed(99)
    again = [loss_of(retention, step).item() for step in reversed(range(4))]
    assert again == first[::-1]
    assert len(set(first)) == 4


def test_kinds_come_in_turn(
    retention: CounterfactualRetention, pools: dict[str, dict[str, list[Frames]]]
) -> None:
    """Law: over consecutive rows and steps, the kinds alternate."""
    kind_of = {id(one): kind for kind in KINDS for one in pools["touch"][kind]}
    drawn = [
        kind_of[id(one)] for s in range(6) for one in retention._distractors(pools["touch"], s)
    ]
    assert drawn == list(KINDS) * 4


def test_pools_hold_what_their_kind_says(
    model: SafeModel, pools: dict[str, dict[str, list[Frames]]], samples: list[np.ndarray]
) -> None:
    """Law: silence is one sample, shuffled are the training samples, noise is many."""
    pool = pools["touch"]
    assert [len(pool[kind]) for kind in KINDS] == [1, 24, len(samples)]
    silence = model.encode("touch", [np.zeros_like(samples[0])])
    assert torch.equal(pool["silent"][0].values, silence.values)
    direct = model.encode("touch", samples)
    for row, one in enumerate(pool["shuffled"]):
        torch.testing.assert_close(one.values, direct.values[row : row + 1])


def test_a_closed_gate_runs_no_text(model: SafeModel, retention: CounterfactualRetention) -> None:
    """Law: while every gate is 0 the model is its base, and no retention text is run."""
    perturb(model)
    runs: list[int] = []
    model.base.register_forward_pre_hook(lambda *args: runs.append(1))
    model.set_gate(0.0)
    assert loss_of(retention, 0).item() == 0.0
    assert not runs
    model.set_gate(0.5)
    assert loss_of(retention, 0).item() > 0.0
    assert runs


@pytest.mark.parametrize("autocast", [False, True])
def test_steps_in_lower_precision_keep_no_side_of_a_divergence(
    retention: CounterfactualRetention, tmp_path: Path, autocast: bool
) -> None:
    """Law: such steps compare logits, so no divergence without them is prepared."""
    told: set[str] = set()
    retention.states = retention.teacher.states = states_of(retention.model, tmp_path)
    retention.precompute(2, lambda label, *_: told.add(label), autocast=autocast)
    assert ("reading the base's answers" in told) is not autocast
