"""The teacher, and what is stored of its texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import FINAL, has_plain_head, run_until
from safe_framework.core.padding import attention_mask, pad_right
from safe_framework.core.prompt_rows import PromptEncoder, Rows, as_rows
from safe_framework.training.compute.activation_cache import ActivationStore
from safe_framework.training.retention.teacher import Teacher, TeacherPredictions
from tests.support.tolerance import FORWARD, assert_same_sums
from tests.support.toys import PAD, llama
from tests.training.conftest import ROWS, model_with_modality, perturb
from tests.training.test_losses import Headless, as_kind

TEXT = {"input_ids": torch.tensor(ROWS[:1]), "attention_mask": torch.ones(1, len(ROWS[0]))}


class Doubled(LlamaForCausalLM):
    """A base that changes its logits behind the output embeddings."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out


def states_of(model: SafeModel, folder: Path) -> ActivationStore:
    """The store of the final states of all texts."""

    def compute(rows: Rows) -> dict[str, Tensor]:
        return run_until(model, PromptEncoder.of(model).collate(rows, PAD), final=True)

    return ActivationStore(ROWS, compute, [FINAL], folder)


def base_logits(model: SafeModel, chosen: list[int]) -> Tensor:
    """The base's logits at every token."""
    rows = [ROWS[i] for i in chosen]
    mask = attention_mask(rows)
    return model.base(input_ids=pad_right(rows, PAD), attention_mask=mask).logits[mask.bool()]


@pytest.mark.parametrize("kept", [True, False])
def test_the_teacher_is_the_base(model: SafeModel, tmp_path: Path, kept: bool) -> None:
    """Law: in any batch, the teacher gives the base's logits at every real position."""
    teacher = Teacher(model, PAD, states_of(model, tmp_path) if kept else None)
    chosen = [1, 2, 3, 1]
    given = teacher.logits(as_rows([ROWS[i] for i in chosen]))
    assert_same_sums(given, base_logits(model, chosen), FORWARD)


def test_a_plain_head_is_distinguished_from_another(model: SafeModel) -> None:
    """Law: a base that changes its logits after the head is found to do so."""
    base = llama()
    base.__class__ = Doubled
    assert has_plain_head(model, TEXT)
    assert not has_plain_head(model_with_modality(base), TEXT)


def test_a_base_that_hides_its_head_has_no_plain_one() -> None:
    """Law: where no module makes the logits, none is relied on."""
    assert not has_plain_head(model_with_modality(as_kind(Headless)()), TEXT)


def test_the_teacher_has_no_modality(model: SafeModel) -> None:
    """Law: what the modality has learned does not change the teacher, and gets no gradient."""
    before = Teacher(model, PAD).logits(as_rows(ROWS[:1]))
    perturb(model)
    after = Teacher(model, PAD).logits(as_rows(ROWS[:1]))
    assert torch.equal(after, before)
    assert not after.requires_grad


def test_what_is_stored_has_no_history(
    model: SafeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a text is run in a batch with the same texts, whichever were asked for before it.

    A wide base rounds a row differently with other rows beside it, so that a resumed run would
    otherwise end at other weights than an unbroken one.
    """
    monkeypatch.setattr("safe_framework.training.compute.activation_cache.GROUP_SIZE", 2)
    ran = []
    for number, order in enumerate(([0, 3, 1, 2], [2, 1, 3, 0])):
        seen: set[str] = set()
        states = states_of(model, tmp_path / str(number))
        compute = states.compute
        monkeypatch.setattr(
            states, "compute", lambda rows, c=compute, s=seen: s.add(str(rows)) or c(rows)
        )
        for row in order:
            states.of([ROWS[row]])
        ran.append(seen)
    assert len(ran[0]) == 2
    assert ran[0] == ran[1]


def test_a_text_is_run_once(model: SafeModel, tmp_path: Path) -> None:
    """Law: what the base made of a text is computed once, even for another run."""
    runs: list[int] = []
    model.base.register_forward_pre_hook(lambda *args: runs.append(1))
    first = states_of(model, tmp_path).of(ROWS)
    assert len(runs) == 1
    again = states_of(model, tmp_path)
    again.precompute(ROWS, "reading")
    assert len(runs) == 1
    assert all(torch.equal(a[FINAL], b[FINAL]) for a, b in zip(first, again.of(ROWS), strict=True))


def test_states_are_without_padding(model: SafeModel, tmp_path: Path) -> None:
    """Law: each text's states are as long as the text, whatever the batch was."""
    kept = states_of(model, tmp_path).of(ROWS)
    assert [len(state[FINAL]) for state in kept] == list(map(len, ROWS))


def test_an_unknown_text_is_not_held(model: SafeModel, tmp_path: Path) -> None:
    """Law: a store does not contain a batch with another text."""
    states = states_of(model, tmp_path)
    assert states.contains(ROWS)
    assert not states.contains([*ROWS, [5, 5]])


def test_a_teacher_that_keeps_nothing_runs_once(model: SafeModel) -> None:
    """Law: a divergence runs the base once, and as far as its head."""
    ran: list[int] = []
    model.base.model.norm.register_forward_hook(lambda *call: ran.append(len(call[-1])))
    model.base.lm_head.register_forward_hook(lambda *call: ran.append(0))
    TeacherPredictions(Teacher(model, PAD), ROWS).softmax(2.0)
    assert ran == [len(ROWS)]


def test_what_a_divergence_needs_is_stored(
    model: SafeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: once warm, the base's side of a divergence reads the vocabulary no more."""
    teacher, told = Teacher(model, PAD, states_of(model, tmp_path)), set[str]()
    teacher.precompute(ROWS, [2.0], lambda label, *_: told.add(label))
    assert told == {"reading the base's answers"}
    fresh = TeacherPredictions(Teacher(model, PAD), ROWS).softmax(2.0)
    monkeypatch.setattr("safe_framework.training.retention.teacher.softmax_statistics", None)
    for knowing in (teacher, Teacher(model, PAD, states_of(model, tmp_path))):
        kept = TeacherPredictions(knowing, ROWS).softmax(2.0)
        assert_same_sums(kept.log_sum, fresh.log_sum, FORWARD, dtype=torch.float32)
        assert_same_sums(kept.embedding, fresh.embedding, FORWARD)


def test_nothing_is_stored_for_a_head_whose_logits_are_needed(tmp_path: Path) -> None:
    """Law: where no divergence will ask for it, the base's side of one is not computed."""
    model = model_with_modality(llama().bfloat16())
    teacher, told = Teacher(model, PAD, states_of(model, tmp_path)), list[str]()
    teacher.precompute(ROWS, [2.0], lambda label, *_: told.append(label))
    assert not told
