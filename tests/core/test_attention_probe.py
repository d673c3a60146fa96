"""The attention probe: right numbers when it is on, nothing at all when it is off."""

from __future__ import annotations

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.attention import cross_attention
from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError
from safe_framework.utils.tensors import bitwise_equal
from safe_framework.verification.outcome import trace_call
from tests.support.fusions import VARIANTS, with_modality
from tests.support.toys import FRAMES, PAD, attached, felt, llama, texts

PLAIN = "cross_attention, plain"


@pytest.fixture
def model() -> SafeModel:
    """A trained modality whose attention is recorded."""
    model = with_modality("cross_attention, nothing", llama(), trained=True)
    model.configure_attention_probe(enabled=True, limit=10)
    return model


@pytest.fixture
def batch(model: SafeModel) -> dict[str, Tensor]:
    """Two rows of five words with a sample each."""
    return texts(model.base, 2, 5) | felt(2)


@pytest.fixture(autouse=True)
def _never_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start as a process in which no probe was ever on."""
    monkeypatch.setattr(cross_attention, "_ever_observed", False)


def test_it_is_off_by_default_and_never_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a model whose probe was not asked for records nothing and calls nobody."""
    model = with_modality(PLAIN, llama(), trained=True)
    monkeypatch.setattr(cross_attention, "_tell", None)
    monkeypatch.setattr(cross_attention, "observed", None)
    model(**texts(model.base, 2, 5), **felt(2))
    assert model.attention_probe.records == ()


def test_off_again_runs_the_same_operations_as_ever(
    model: SafeModel, batch: dict[str, Tensor]
) -> None:
    """Law: after it is switched off, a call takes the very operations of one that never was on."""
    never = with_modality("cross_attention, nothing", llama(), trained=True)
    model(**batch)
    model.configure_attention_probe(enabled=False)
    assert trace_call(model, batch, model.base)[1] == trace_call(never, batch, never.base)[1]
    assert len(model.attention_probe.records) == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_shipped_adapter_is_seen_and_not_disturbed(variant: str) -> None:
    """Law: on, each layer and head of any shipped adapter is recorded, and no bit changes."""
    model = with_modality(variant, llama(), trained=True)
    batch = texts(model.base, 2, 5) | felt(2)
    before = model(**batch).logits
    model.configure_attention_probe()
    assert bitwise_equal(model(**batch).logits, before)
    first, second = model.attention_probe.records
    assert (first.row, second.row) == (0, 1)
    assert first.layers == (0, 1)
    heads = first.mean.shape[1]
    assert first.over_tokens.shape == (2, heads, FRAMES)
    assert first.answer.shape == (2, heads, 1, FRAMES)
    assert (first.heard > 0).all()
    assert not torch.equal(first.over_tokens, second.over_tokens)


def test_numbers_are_those_of_the_attention(model: SafeModel, batch: dict[str, Tensor]) -> None:
    """Law: mean, max, entropy and the total share follow from the attention's own shares."""
    reported: list[Tensor] = []
    with cross_attention.observed(reported.append):
        model.configure_attention_probe(enabled=False)
        model(**batch)
    model.configure_attention_probe()
    model(**batch)
    record = model.attention_probe.records[1]
    for index, shares in enumerate(share[1] for share in reported):
        nothing = (1 - shares.sum(-1, keepdim=True)).clamp_min(0)
        whole = torch.cat([shares, nothing], -1)
        entropy = -torch.xlogy(whole, whole).sum(-1).mean(-1)
        torch.testing.assert_close(record.mean[index], shares.mean((1, 2)))
        torch.testing.assert_close(record.max[index], shares.amax((1, 2)))
        torch.testing.assert_close(record.entropy[index], entropy)
        torch.testing.assert_close(record.heard[index], shares.sum(-1).mean(-1))
        torch.testing.assert_close(record.answer[index, :, 0], shares[:, -1])


def test_indifferent_attention_has_the_entropy_of_a_fair_choice() -> None:
    """Law: equal scores give each of n tokens 1/n, and an entropy of log n."""
    model = with_modality(PLAIN, llama(), trained=True)
    with torch.no_grad():
        for layer in (0, 1):
            model.modality("touch").fusion.blocks.at(layer).key.weight.zero_()
    model.configure_attention_probe()
    model(**texts(model.base, 1, 4), **felt(1))
    (record,) = model.attention_probe.records
    torch.testing.assert_close(record.mean, torch.full_like(record.mean, 1 / FRAMES))
    torch.testing.assert_close(record.entropy, torch.full_like(record.mean, math.log(FRAMES)))


@pytest.mark.parametrize("cached", [True, False])
def test_answers_are_attended_from_their_own_positions(model: SafeModel, cached: bool) -> None:
    """Law: ``generate`` records one position for each new token, cached or not the same."""
    batch = texts(model.base, 2, 5) | felt(2)
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    model.generate(**batch, **options, use_cache=cached)
    record = model.attention_probe.records[0]
    assert record.answer.shape[2] == 4
    model.attention_probe.clear()
    model.generate(**batch, **options, use_cache=not cached)
    other = model.attention_probe.records[0]
    torch.testing.assert_close(record.answer, other.answer, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(record.mean, other.mean, atol=1e-4, rtol=1e-3)


def test_labels_say_where_the_answer_is(model: SafeModel, batch: dict[str, Tensor]) -> None:
    """Law: with labels, the answer's positions are those that predict a label."""
    labels = batch["input_ids"].clone()
    labels[:, :3] = -100
    model(**batch, labels=labels)
    record = model.attention_probe.records[0]
    assert record.answer.shape[2] == 2


def test_padding_is_no_position(model: SafeModel) -> None:
    """Law: a row that is padded on the left is recorded as it is without padding."""
    alone = texts(model.base, 1, 4)
    padded = {
        "input_ids": torch.cat([torch.full((1, 3), PAD), alone["input_ids"]], 1),
        "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1, 1]]),
    }
    model(**alone, **felt(1))
    model(**padded, **felt(1))
    first, second = model.attention_probe.records
    torch.testing.assert_close(first.over_tokens, second.over_tokens, atol=1e-3, rtol=1e-3)


def test_only_rows_and_tokens_that_are_there_are_recorded(model: SafeModel) -> None:
    """Law: a row without a sample has no record, and a masked token no column."""
    sample = felt(3, present=[False, True, True])
    sample["touch__mask"][1, 2] = False
    model(**texts(model.base, 3, 4), **sample)
    first, second = model.attention_probe.records
    assert (first.row, second.row) == (1, 2)
    assert first.over_tokens.shape[-1] == FRAMES - 1
    assert second.over_tokens.shape[-1] == FRAMES


def test_the_latest_samples_are_kept(model: SafeModel, batch: dict[str, Tensor]) -> None:
    """Law: no more than ``limit`` samples are held, and they are the last ones."""
    model.configure_attention_probe(enabled=True, limit=3)
    for _ in range(3):
        model(**batch)
    assert [record.row for record in model.attention_probe.records] == [1, 0, 1]
    with pytest.raises(SafeError, match="`limit` must be at least 1, not 0"):
        model.configure_attention_probe(enabled=True, limit=0)


def test_threads_record_their_own_samples(model: SafeModel) -> None:
    """Law: calls at the same time record what each records alone."""
    base = texts(model.base, 1, 5)
    model.configure_attention_probe(enabled=True, limit=100)
    calls = [base | felt(1, seed=seed) for seed in range(8)]
    alone = []
    for call in calls:
        model(**call)
        alone.append(model.attention_probe.records[-1].over_tokens)
    model.attention_probe.clear()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda call: model(**call), calls))
    together = [record.over_tokens for record in model.attention_probe.records]
    assert len(together) == len(alone)
    for expected in alone:
        assert any(bitwise_equal(expected, found) for found in together)


def test_beams_record_the_first_of_a_samples_copies(model: SafeModel) -> None:
    """Law: beam search records one sample for each row."""
    batch = texts(model.base, 2, 5) | felt(2)
    model.generate(**batch, num_beams=3, max_new_tokens=3, do_sample=False)
    assert [record.row for record in model.attention_probe.records] == [0, 1]


def test_an_adapter_that_cannot_be_seen_is_named() -> None:
    """Law: an adapter with an attention of its own is warned of, and nothing is made up."""
    model = attached(llama())
    model.configure_attention_probe()
    with pytest.warns(UserWarning, match="nothing was recorded of modality `touch`.*`ToyFusion`"):
        model(**texts(model.base, 1, 4), **felt(1))
    assert model.attention_probe.records == ()


def test_a_closed_gate_records_nothing(model: SafeModel, batch: dict[str, Tensor]) -> None:
    """Law: a call in which the modality is off leaves no record."""
    model(**batch, gate=0.0)
    assert model.attention_probe.records == ()


def test_a_model_that_has_records_is_copied_and_pickled(
    model: SafeModel, batch: dict[str, Tensor]
) -> None:
    """Law: the probe stands in the way of neither, and a copy records for itself."""
    model(**batch)
    twin = copy.deepcopy(model)
    twin(**batch)
    assert len(twin.attention_probe.records) == 4
    assert len(model.attention_probe.records) == 2
    assert len(pickle.loads(pickle.dumps(model.attention_probe)).records) == 2
