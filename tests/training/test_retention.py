"""Counterfactual retention, and the teacher that it listens to."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from safe_framework.model import SafeModel
from safe_framework.shapes import Frames
from safe_framework.training.batches import attention_mask, pad_right
from safe_framework.training.retention import CounterfactualRetention
from safe_framework.training.teacher import Teacher
from tests.toys import PAD, llama
from tests.training.conftest import KINDS, ROWS, perturb, sensing

CPU = torch.device("cpu")


class Doubled(LlamaForCausalLM):
    """A base that changes its logits behind the output embeddings."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out


def doubled() -> SafeModel:
    """A sense on such a base."""
    base = llama()
    base.__class__ = Doubled
    return sensing(base)


def base_logits(model: SafeModel, chosen: list[int]) -> Tensor:
    """What the base says, padded like the teacher's."""
    rows = [ROWS[i] for i in chosen]
    return model.base(input_ids=pad_right(rows, PAD), attention_mask=attention_mask(rows)).logits


def count_runs(model: SafeModel) -> list[int]:
    """A list that grows with each run of the base."""
    runs: list[int] = []
    model.base.register_forward_pre_hook(lambda *args: runs.append(1))
    return runs


def test_what_the_teacher_keeps_has_no_history(
    model: SafeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a text is run beside the same texts, whichever were asked for before it.

    A wide base rounds a row differently with other rows beside it, so that a resumed run would
    otherwise end at other weights than an unbroken one.
    """
    monkeypatch.setattr("safe_framework.training.teacher._GROUP", 2)
    ran = []
    for order in ([0, 3, 1, 2], [2, 1, 3, 0]):
        seen: list[tuple[tuple[int, ...], ...]] = []
        model.base.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(
                tuple(map(tuple, kwargs["input_ids"].tolist()))
            ),
            with_kwargs=True,
        )
        teacher = Teacher(model, ROWS, PAD)
        seen.clear()
        for row in order:
            teacher.logits([row])
        ran.append(set(seen))
    assert len(ran[0]) == -(-len(ROWS) // 2)
    assert ran[0] == ran[1]


def test_the_teacher_is_the_base_on_padded_texts(model: SafeModel) -> None:
    """Law: in any batch, what was kept gives the base's logits at every real position."""
    teacher = Teacher(model, ROWS, PAD)
    teacher.logits([2, 0])
    chosen = [1, 2, 3, 1]
    mask = attention_mask([ROWS[i] for i in chosen]).bool()
    given, expected = teacher.logits(chosen), base_logits(model, chosen)
    torch.testing.assert_close(given[mask], expected[mask], atol=1e-6, rtol=1e-6)


def test_a_text_is_run_once(model: SafeModel) -> None:
    """Law: what the base said of a text is computed once."""
    teacher = Teacher(model, ROWS, PAD)
    runs = count_runs(model)
    for _ in range(3):
        teacher.logits([0, 1, 1])
    assert len(runs) == 1


def test_logits_changed_behind_the_head_are_not_kept() -> None:
    """Law: where the base changes its logits after the head, the teacher runs it each time."""
    model = doubled()
    teacher = Teacher(model, ROWS, PAD)
    runs = count_runs(model)
    for _ in range(2):
        assert torch.equal(teacher.logits([0, 2]), base_logits(model, [0, 2]))
    assert len(runs) == 4


def test_the_teacher_does_not_hear(model: SafeModel) -> None:
    """Law: what the sense has learned does not change the teacher, nor does it get a gradient."""
    before = Teacher(model, ROWS, PAD).logits([0])
    perturb(model)
    after = Teacher(model, ROWS, PAD).logits([0])
    assert torch.equal(after, before)
    assert not after.requires_grad


def test_a_fresh_sense_loses_nothing(model: SafeModel, retention: CounterfactualRetention) -> None:
    """Law: the loss of a fresh, silent sense is 0, but for the rounding of padded texts."""
    for step in range(4):
        assert abs(retention.loss(model, step, CPU).item()) < 1e-9


def test_an_open_sense_loses(model: SafeModel, retention: CounterfactualRetention) -> None:
    """Law: once the sense changes answers, the loss is above 0."""
    perturb(model)
    assert retention.loss(model, 0, CPU).item() > 1e-4


def test_the_gradient_reaches_the_adapters_alone(
    model: SafeModel, retention: CounterfactualRetention
) -> None:
    """Law: fusion and projector get a gradient; base and encoder get none."""
    perturb(model)
    retention.loss(model, 0, CPU).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {f"modalities.{name}" for name in model.trainable_parameters()}


def test_the_weight_scales_the_loss(model: SafeModel, retention: CounterfactualRetention) -> None:
    """Law: the loss is the sum of the methods' penalties times their weights."""
    perturb(model)
    once = retention.loss(model, 0, CPU)
    retention.methods = [*retention.methods, *retention.methods]
    torch.testing.assert_close(retention.loss(model, 0, CPU), 2 * once)


def test_a_step_is_a_function_of_its_number(
    model: SafeModel, retention: CounterfactualRetention
) -> None:
    """Law: texts and samples depend on seed and step alone, not on what was drawn before."""
    perturb(model)
    first = [retention.loss(model, step, CPU).item() for step in range(4)]
    torch.manual_seed(99)
    again = [retention.loss(model, step, CPU).item() for step in reversed(range(4))]
    assert again == first[::-1]
    assert len(set(first)) == 4


def test_kinds_come_in_turn(
    retention: CounterfactualRetention, pools: dict[str, dict[str, list[Frames]]]
) -> None:
    """Law: over consecutive rows and steps, the kinds alternate."""
    kind_of = {id(one): kind for kind in KINDS for one in pools["touch"][kind]}
    drawn = [kind_of[id(one)] for s in range(6) for one in retention._irrelevant(pools["touch"], s)]
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
