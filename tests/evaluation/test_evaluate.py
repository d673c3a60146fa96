"""What `evaluate` promises, on a tiny base with a new modality."""

import copy

import attrs
import numpy as np
import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.errors import DataError, SafeError
from safe_framework.evaluation.answers import answer, without_modality
from safe_framework.evaluation.evaluate import evaluate
from safe_framework.evaluation.results import Evaluation
from safe_framework.utils.tensors import bitwise_equal
from tests.support.toys import every_tensor


@pytest.fixture
def found(model, examples, texts):
    """An evaluation of the untrained modality."""
    return evaluate(
        model, modality="touch", train=examples, test=examples, texts=texts,
        max_new_tokens=2, batch_size=5, bootstrap=50,
    )  # fmt: skip


def test_absent_modality_is_the_base_bit_for_bit(found, texts):
    """Form one of retention: identical logits, agreement exactly 1."""
    assert found.retention.absent.identical
    assert found.retention.absent.agreement == 1.0
    assert found.retention.absent.texts == len(texts)


def test_gate_zero_is_the_base_bit_for_bit(found, examples):
    """With samples given and the gate at 0, logits and tokens are the base's."""
    assert found.gate_zero.logits_identical
    assert found.gate_zero.tokens_identical
    assert found.gate_zero.examples == len(examples)


def test_irrelevant_samples_are_compared_by_kind_and_together(found, texts):
    """Form two of retention: silent, noise and shuffled, and all of them overall."""
    kept = found.retention
    assert set(kept.counterfactual) == {"silent", "noise", "shuffled"}
    positions = sum(len(text.split()) for text in texts)
    assert {kind.positions for kind in kept.counterfactual.values()} == {positions}
    assert kept.overall.positions == 3 * positions
    shares = [kind.agreement.value for kind in kept.counterfactual.values()]
    assert kept.overall.agreement.value == pytest.approx(sum(shares) / 3)


def test_an_open_gate_is_seen_to_change_the_base(found):
    """An adapter that shouts over everything is reported to, under every irrelevant sample."""
    assert found.retention.overall.agreement.value < 1
    assert found.retention.overall.kl.value > 0.001
    assert found.retention.relevant.kl.value > 0.001


def test_a_silent_adapter_keeps_everything(model, examples, texts):
    """With a delta of zero, agreement is 1 and the divergence 0 at gate 1."""
    with torch.no_grad():
        model.modality("touch").fusion.scale.zero_()
    found = evaluate(
        model, modality="touch", train=examples, test=examples, texts=texts, max_new_tokens=1
    )
    assert found.retention.overall.agreement.value == 1.0
    assert found.retention.overall.kl.value == 0.0
    assert found.gain.over_base.value == 0.0


def test_the_model_is_left_as_it_was(model, examples, texts):
    """Gate, training mode and every parameter are what they were."""
    model.train()
    model.set_gate(0.25)
    before = {name: value.clone() for name, value in every_tensor(model)}
    evaluate(model, modality="touch", train=examples, test=examples, texts=texts, bootstrap=5)
    assert model.training
    assert model.gates == {"touch": 0.25}
    after = dict(every_tensor(model))
    assert all(bitwise_equal(value, after[name]) for name, value in before.items())


def test_gate_is_taken_as_one(model, examples, texts, found):
    """What is measured does not depend on the strength that the model is set to."""
    model.set_gate(0.0)
    shut = evaluate(
        model, modality="touch", train=examples, test=examples, texts=texts,
        max_new_tokens=2, batch_size=5, bootstrap=50,
    )  # fmt: skip
    assert shut == found


def test_every_example_is_answered(found, examples):
    """One row for each test example, in order, with all the answers to it."""
    assert [row.place for row in found.answers] == [example.place for example in examples]
    assert sum(sum(row.values()) for row in found.gain.confusion.values()) == len(examples)
    assert found.gain.probe.value == 1.0


def test_numbers_of_parameters(found, model):
    """Trainable and frozen parameters are counted apart."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.trainable_parameters == trainable > 0
    assert found.base_parameters == sum(p.numel() for p in model.base.parameters())


def test_metrics_json_comes_back_equal(found):
    """Reading what was written gives an equal evaluation."""
    priced = attrs.evolve(found, costs={"train_seconds": 1.5})
    assert Evaluation.from_json(priced.to_json()) == priced


def test_progress_reaches_the_total(model, examples, texts):
    """Every label ends with as many done as there are."""
    last = {}

    def progress(label, done, total):
        last[label] = (done, total)

    evaluate(
        model, modality="touch", train=examples, test=examples, texts=texts,
        max_new_tokens=1, bootstrap=5, progress=progress,
    )  # fmt: skip
    assert len(last) == 8
    assert all(done == total for done, total in last.values())


def test_an_example_without_the_modality_is_named(model, examples, texts):
    """An example that lacks the modality is refused with its position."""
    broken = [*examples[:2], attrs.evolve(examples[2], samples={})]
    with pytest.raises(DataError, match=r"test\.jsonl:3: the example has no `touch`"):
        evaluate(model, modality="touch", train=examples, test=broken, texts=texts)


@pytest.mark.parametrize("empty", ["train", "test", "texts"])
def test_nothing_to_evaluate_with_is_refused(model, examples, texts, empty):
    """Empty data is named."""
    given = {"train": examples, "test": examples, "texts": texts, empty: []}
    with pytest.raises(DataError, match=f"`{empty}` is empty"):
        evaluate(model, modality="touch", **given)


def test_a_diverged_adapter_is_named(model, examples, texts):
    """NaN in the logits at gate 1 is an error, and never a number in a report."""
    with torch.no_grad():
        model.modality("touch").fusion.scale.fill_(float("nan"))
    with pytest.raises(SafeError, match="NaN or infinity"):
        evaluate(
            model, modality="touch", train=examples, test=examples, texts=texts, max_new_tokens=1
        )


def test_a_leak_of_one_bit_is_reported(model, examples, texts, monkeypatch):
    """A model that is not its base when off is found out, however small the difference."""
    whole = SafeModel.forward

    def leaking(self, *args, **inputs):
        outputs = whole(self, *args, **inputs)
        outputs.logits = torch.nextafter(outputs.logits, torch.tensor(torch.inf))
        return outputs

    monkeypatch.setattr(SafeModel, "forward", leaking)
    found = evaluate(
        model, modality="touch", train=examples, test=examples, texts=texts, max_new_tokens=1
    )
    assert not found.retention.absent.identical
    assert not found.gate_zero.logits_identical
    assert found.gate_zero.tokens_identical
    assert not found.gate_zero.identical


def test_other_modalities_stay_on(model, examples, texts):
    """With two modalities, one is measured against the model that has only the other."""
    parts = model.modality("touch")
    model.add_modality(
        "smell",
        encoder=copy.deepcopy(parts.encoder),
        projector=copy.deepcopy(parts.projector),
        fusion=copy.deepcopy(parts.fusion),
    )
    both = [
        attrs.evolve(row, samples={**row.samples, "smell": np.float32([9, 9])}) for row in examples
    ]
    found = evaluate(model, modality="touch", train=both, test=both, texts=texts, max_new_tokens=2)
    assert found.gate_zero.identical
    assert found.retention.absent.identical
    smelt = answer(model, without_modality(both, "touch"), max_new_tokens=2)
    assert [row.base for row in found.answers] == smelt
