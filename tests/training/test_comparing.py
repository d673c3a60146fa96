"""A model beside its base, through hidden states or through logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_framework.comparison import Comparison, HiddenComparison, LogitComparison
from safe_framework.model import SafeModel
from safe_framework.training.batches import IGNORED, attention_mask, pad_right
from safe_framework.training.comparing import Comparing
from safe_framework.training.losses import answer_loss
from safe_framework.training.teacher import TaughtWords, Teacher, has_plain_head
from safe_framework_plugins.retention.distillation import DistillationRegularizer
from tests.toys import PAD, felt, gpt2, llama
from tests.training.conftest import ROWS, perturb, sensing
from tests.training.test_teacher import Doubled, states_of

BASES = {"llama": llama, "gpt2": gpt2}


def compared(model: SafeModel, comparing: Comparing) -> Comparison:
    """All texts beside a sample."""
    batch = {"input_ids": pad_right(ROWS, PAD), "attention_mask": attention_mask(ROWS)}
    places = batch["attention_mask"].bool()
    return comparing.compare(model, batch | felt(len(ROWS)), places, ROWS)


def penalty_and_gradients(model: SafeModel, comparison: Comparison) -> tuple[Tensor, list[Tensor]]:
    """Of distillation."""
    penalty = DistillationRegularizer().penalty_of(comparison)
    return penalty, list(torch.autograd.grad(penalty, list(model.trainable_parameters().values())))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kept", [True, False])
def test_both_ways_agree(base: str, kept: bool, tmp_path: Path) -> None:
    """Law: hidden states give the penalty and the gradients that logits give."""
    model = sensing(BASES[base]())
    perturb(model)
    teacher = Teacher(model, PAD, states_of(model, tmp_path) if kept else None)
    comparing = Comparing(model, teacher, ROWS[0])
    short = compared(model, comparing)
    comparing.plain = False
    long = compared(model, comparing)
    assert isinstance(short, HiddenComparison)
    assert isinstance(long, LogitComparison)
    ours, gradients = penalty_and_gradients(model, short)
    wanted, wanted_gradients = penalty_and_gradients(model, long)
    assert wanted > 1e-4
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradients, wanted_gradients, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(short.logits, long.logits)
    torch.testing.assert_close(short.base_logits, long.base_logits)


def test_a_teacher_that_keeps_nothing_runs_once(model: SafeModel) -> None:
    """Law: a divergence runs the base once, and as far as its head."""
    ran: list[int] = []
    model.base.model.norm.register_forward_hook(lambda *call: ran.append(len(call[-1])))
    model.base.lm_head.register_forward_hook(lambda *call: ran.append(0))
    TaughtWords(Teacher(model, PAD), ROWS).expected(2.0)
    assert ran == [len(ROWS)]


def doubled() -> nn.Module:
    """A base that changes its logits behind the head."""
    base = llama()
    base.__class__ = Doubled
    return base


@pytest.mark.parametrize(
    "make", [doubled, lambda: llama().bfloat16()], ids=["changed behind the head", "bfloat16"]
)
def test_logits_are_compared_where_hidden_states_would_not_do(make: Any) -> None:
    """Law: a base whose logits are not its head's in float32 is compared by its logits."""
    model = sensing(make())
    model.base.requires_grad_(False)
    found = compared(model, Comparing(model, Teacher(model, PAD), ROWS[0]))
    assert isinstance(found, LogitComparison)


def test_a_head_that_is_shown_other_positions_is_not_asked_again(
    model: SafeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: where a step finds no state for each position, logits are compared from then on."""
    comparing, asked = Comparing(model, Teacher(model, PAD), ROWS[0]), []
    monkeypatch.setattr(
        "safe_framework.training.comparing.hidden_at", lambda *call: asked.append(call)
    )
    assert isinstance(compared(model, comparing), LogitComparison)
    assert isinstance(compared(model, comparing), LogitComparison)
    assert len(asked) == 1


def test_what_a_divergence_needs_is_kept(
    model: SafeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: once warm, the base's side of a divergence reads the vocabulary no more."""
    teacher, told = Teacher(model, PAD, states_of(model, tmp_path)), set[str]()
    Comparing(model, teacher, ROWS[0]).warm(
        ROWS, [DistillationRegularizer(temperature=2.0)], lambda label, *_: told.add(label)
    )
    assert told == {"reading the base's answers"}
    fresh = TaughtWords(Teacher(model, PAD), ROWS).expected(2.0)
    monkeypatch.setattr("safe_framework.training.teacher.expected", None)
    for knowing in (teacher, Teacher(model, PAD, states_of(model, tmp_path))):
        kept = TaughtWords(knowing, ROWS).expected(2.0)
        torch.testing.assert_close(kept.log_sum, fresh.log_sum)
        torch.testing.assert_close(kept.embedding, fresh.embedding)


@pytest.mark.parametrize("base", BASES)
def test_the_tasks_loss_needs_no_logits(base: str) -> None:
    """Law: the loss and its gradients are the same with and without logits."""
    model = sensing(BASES[base]())
    perturb(model)
    assert has_plain_head(model, [0, 0])
    ids, mask = pad_right(ROWS, PAD), attention_mask(ROWS)
    labels = torch.where(mask.bool(), ids, IGNORED)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels} | felt(len(ROWS))
    shown: list[int] = []
    head = model.base.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: shown.append(args[0].shape[1]))
    trained = list(model.trainable_parameters().values())
    found = []
    for plain in (True, False):
        loss = answer_loss(model, model.base, batch, plain=plain)
        found.append((loss, torch.autograd.grad(loss, trained)))
    assert shown[0] == 0
    assert shown[1] > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
