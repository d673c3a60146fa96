"""Predictions of a model in several calls, with as little computation as is exact."""

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.core.padding import attention_mask, pad_right
from safe_framework.interfaces.retention import Comparison, LogitComparison
from safe_framework.interfaces.types import IGNORED
from safe_framework.training.compute.base_properties import NO_PROPERTIES
from safe_framework.training.compute.calls import (
    ForwardCall,
    HiddenComparison,
    HiddenPredictions,
    LogitPredictions,
)
from safe_framework.training.compute.forward import ForwardPlanner
from safe_framework.training.objective import Answers
from safe_framework.training.retention.teacher import Teacher, TeacherPredictions
from safe_framework_plugins.retention.distillation import DistillationRegularizer
from tests.support.tolerance import BACKWARD, FORWARD, assert_same_sums
from tests.support.toys import PAD, felt, gpt2, llama, opt
from tests.training.conftest import ROWS, model_with_modality, perturb
from tests.training.test_teacher import Doubled, states_of

BASES = {"llama": llama, "gpt2": gpt2, "opt": opt}
ANSWERED = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16]]


def learned(make: Any) -> SafeModel:
    """A base with a trained modality."""
    model = model_with_modality(make())
    perturb(model)
    return model


def encoded(rows: int) -> dict[str, Tensor]:
    """A sample for each row, as the encoder gives it."""
    names = {"touch__values": "touch__frames", "touch__mask": "touch__frames_mask"}
    return {names.get(key, key): value for key, value in felt(rows).items()}


def texts(rows: list[list[int]] = ROWS, temperature: float = 3.0) -> ForwardCall:
    """Texts with a sample, read at every token."""
    batch = {"input_ids": pad_right(rows, PAD), "attention_mask": attention_mask(rows)}
    return ForwardCall(batch | encoded(len(rows)), batch["attention_mask"].bool(), (temperature,))


def answers() -> Answers:
    """Rows whose later predictions are scored."""
    ids, mask = pad_right(ANSWERED, PAD), attention_mask(ANSWERED)
    labels = torch.where(mask.bool(), ids, IGNORED)
    labels[:, 0] = labels[0, 1] = IGNORED
    return Answers.of(
        {"input_ids": ids, "attention_mask": mask, "labels": labels} | encoded(len(ANSWERED))
    )


def compared(model: SafeModel, planner: ForwardPlanner, teacher: Teacher) -> Comparison:
    """All texts with a sample, compared with the base."""
    (predictions,) = planner.predictions([texts()])
    return predictions.compare_with(TeacherPredictions(teacher, ROWS))


def gradients(model: SafeModel, loss: Tensor) -> tuple[Tensor, ...]:
    """Of a loss, for what trains."""
    return torch.autograd.grad(loss, list(model.trainable_parameters().values()))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kept", [True, False])
def test_both_ways_agree(base: str, kept: bool, tmp_path: Path) -> None:
    """Law: hidden states give the penalty and the gradients that logits give."""
    model = learned(BASES[base])
    teacher = Teacher(model, PAD, states_of(model, tmp_path) if kept else None)
    short = compared(model, ForwardPlanner(model), teacher)
    long = compared(model, ForwardPlanner(model, properties=NO_PROPERTIES), teacher)
    assert isinstance(short, HiddenComparison)
    assert isinstance(long, LogitComparison)
    method = DistillationRegularizer()
    ours, wanted = method.penalty_of(short), method.penalty_of(long)
    assert wanted > 1e-4
    assert_same_sums(ours, wanted, FORWARD)
    assert_same_sums(gradients(model, ours), gradients(model, wanted), BACKWARD)
    assert_same_sums(short.logits, long.logits, FORWARD)
    assert_same_sums(short.base_logits, long.base_logits, FORWARD)
    assert short.mask.all()


def doubled() -> nn.Module:
    """A base that changes its logits behind the head."""
    base = llama()
    base.__class__ = Doubled
    return base


@pytest.mark.parametrize(
    "make", [doubled, lambda: llama().bfloat16()], ids=["changed behind the head", "bfloat16"]
)
def test_logits_are_made_where_hidden_states_would_not_do(make: Any) -> None:
    """Law: a base whose logits are not its head's in float32 is read by its logits."""
    model = model_with_modality(make())
    model.base.requires_grad_(False)
    assert isinstance(ForwardPlanner(model).predictions([texts()])[0], LogitPredictions)


def test_a_head_that_is_shown_other_positions_is_not_asked_again(
    model: SafeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: where a step finds no state for each position, logits are made from then on."""
    planner, asked = ForwardPlanner(model), list[tuple[Any, ...]]()
    monkeypatch.setattr(
        "safe_framework.training.compute.forward.hidden_at", lambda *call: asked.append(call)
    )
    assert isinstance(planner.predictions([texts()])[0], LogitPredictions)
    assert isinstance(planner.predictions([texts()])[0], LogitPredictions)
    assert len(asked) == 1


@pytest.mark.parametrize("base", BASES)
def test_the_tasks_loss_needs_no_logits(base: str) -> None:
    """Law: the loss and its gradients are the same with and without logits."""
    model, task, shown = learned(BASES[base]), answers(), list[int]()
    head = model.base.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: shown.append(args[0].shape[1]))
    found = []
    for planner in (ForwardPlanner(model), ForwardPlanner(model, properties=NO_PROPERTIES)):
        shown.clear()
        (predictions,) = planner.predictions(
            [ForwardCall(task.inputs, task.positions, task.temperatures)]
        )
        loss = task.loss(predictions)
        found.append((loss, gradients(model, loss), shown[0]))
    assert found[0][2] == 0
    assert found[1][2] == int(task.positions.sum())
    assert_same_sums(found[0][:2], found[1][:2], BACKWARD)


def both_losses(model: SafeModel, planner: ForwardPlanner) -> tuple[Tensor, Tensor]:
    """Of the task and of texts, asked for at once."""
    task = answers()
    calls = [ForwardCall(task.inputs, task.positions, task.temperatures), texts()]
    said, told = planner.predictions(calls)
    penalty = DistillationRegularizer().penalty_of(
        told.compare_with(TeacherPredictions(Teacher(model, PAD), ROWS))
    )
    return task.loss(said), penalty


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_calls_made_as_one_are_the_calls(base: str, checkpointing: bool) -> None:
    """Law: losses and gradients of two calls do not depend on whether they are made as one."""
    model, runs = learned(BASES[base]), list[int]()
    if checkpointing:
        model.gradient_checkpointing_enable()
    known, found = ForwardPlanner(model), []
    apart = ForwardPlanner(model, properties=attrs.evolve(NO_PROPERTIES, plain_head=True))
    counting = model.base.get_output_embeddings()
    counting.register_forward_pre_hook(lambda module, args: runs.append(1))
    for planner in (known, apart):
        runs.clear()
        losses = both_losses(model, planner)
        found.append((losses, gradients(model, sum(losses)), len(runs)))
    assert found[0][2] < found[1][2]
    assert_same_sums(found[0][:2], found[1][:2], BACKWARD)


def test_rows_that_are_mixed_are_called_separately(model: SafeModel) -> None:
    """Law: on a base that mixes rows, each call has the rows that it was given."""
    runs: list[int] = []
    model.base.register_forward_pre_hook(lambda *call: runs.append(1))
    known = ForwardPlanner(model).properties
    for apart in (True, False):
        runs.clear()
        ForwardPlanner(model, properties=attrs.evolve(known, rows_independent=apart)).predictions(
            [texts(), texts()]
        )
        assert len(runs) == (1 if apart else 2)


def test_calls_are_separate_where_devices_share_layers(model: SafeModel) -> None:
    """Law: without `merges`, it makes each call by itself: other devices wait for as many."""
    runs: list[int] = []
    model.base.register_forward_pre_hook(lambda *call: runs.append(1))
    planner = ForwardPlanner(model, merges=False)
    runs.clear()
    planner.predictions([texts(), texts()])
    assert len(runs) == 2


@pytest.mark.parametrize("present", [[True] * 4, [True, False, True, False], [False] * 4])
def test_samples_are_encoded_to_make_calls_as_one(present: list[bool]) -> None:
    """Law: samples that are not encoded yet are, row by row, with the same predictions."""
    model, runs, found = learned(llama), list[int](), []
    one = {"input_ids": pad_right(ROWS, PAD), "attention_mask": attention_mask(ROWS)}
    raw = ForwardCall(one | felt(len(ROWS), present=present), one["attention_mask"].bool())
    if not any(present):
        raw.inputs.pop("touch__values")  # as a batch without a sample is
        raw.inputs.pop("touch__mask")
    model.base.register_forward_pre_hook(lambda *call: runs.append(1))
    for planner in (ForwardPlanner(model), ForwardPlanner(model, properties=NO_PROPERTIES)):
        runs.clear()
        found.append(
            ([predictions.logits for predictions in planner.predictions([raw, texts()])], len(runs))
        )
    assert [count for _, count in found] == [1, 2]
    assert_same_sums(found[0][0], found[1][0], FORWARD)


def test_calls_with_other_modalities_are_separate(model: SafeModel) -> None:
    """Law: a text without a sample is a call of its own, with predictions of its own."""
    perturb(model)
    heard = texts()
    bare = attrs.evolve(heard, inputs={k: v for k, v in heard.inputs.items() if "__" not in k})
    first, second = ForwardPlanner(model).predictions([heard, bare])
    assert_same_sums(second.logits, model.base(**bare.inputs).logits[bare.positions], FORWARD)
    assert not torch.allclose(first.logits, second.logits)


def test_the_vocabulary_is_read_once(model: SafeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: softmaxes that calls have named are read together, any other when it is asked for."""
    reads: list[int] = []

    def reading(asked: Any, head: nn.Linear) -> Any:
        reads.append(len(asked))
        return together(asked, head)

    from safe_framework.training.compute import calls as module

    together = module.softmax_statistics_of_all
    monkeypatch.setattr(module, "softmax_statistics_of_all", reading)
    first, second = ForwardPlanner(model).predictions(
        [texts(temperature=1.0), texts(ROWS[:2], 2.0)]
    )
    assert isinstance(first, HiddenPredictions)
    assert isinstance(second, HiddenPredictions)
    for predictions, temperature in ((first, 1.0), (second, 2.0), (first, 1.0)):
        predictions.softmax(temperature)
    assert reads == [2]
    second.softmax(5.0)
    assert reads == [2, 1]
