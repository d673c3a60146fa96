"""The base and the model with a sample, asked the same."""

import pytest

from safe_framework.evaluation.side_by_side import side_by_side


@pytest.fixture
def sample(examples):
    """One sample of the modality."""
    return examples[0].samples["touch"]


def test_a_closed_gate_is_bitwise_the_base(model, sample):
    """Law: at gate 0 every bit and token is compared and equal."""
    found = side_by_side(model, "touch", "what is this", sample, gate=0.0, max_new_tokens=4)
    assert found.bitwise
    assert found.agreement == 1.0
    assert found.base == found.safe


def test_no_sample_is_bitwise_the_base(model):
    """Law: without a sample the gate does not matter."""
    assert side_by_side(model, "touch", "what is this", None, gate=1.0).bitwise


def test_an_open_gate_is_not_called_bitwise(model, sample):
    """Law: where a bit differs, the badge never says that none does."""
    found = side_by_side(model, "touch", "what is this", sample, gate=1.0, max_new_tokens=4)
    assert not found.same_logits
    assert not found.bitwise


def test_the_smallest_opening_is_seen(model, sample):
    """Law: a gate that changes no answer but some last bit is not the base."""
    found = side_by_side(model, "touch", "what is this", sample, gate=1e-6, max_new_tokens=4)
    assert found.same_answer
    assert found.agreement == 1.0
    assert not found.bitwise


def test_the_model_is_left_as_it_was(model, sample):
    """Law: its gate and mode are what they were."""
    model.train()
    side_by_side(model, "touch", "what is this", sample, gate=0.5, max_new_tokens=1)
    assert model.training
    assert model.gates == {"touch": 1.0}
