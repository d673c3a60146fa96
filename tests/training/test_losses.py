"""The task's loss."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from safe_framework.model import SafeModel
from safe_framework.training.batches import IGNORED, AnswerCollator, TokenizedExample
from safe_framework.training.losses import (
    answer_loss,
    check_finite,
    keeps_positions,
    logits_at,
)
from tests.toys import END, PAD, gpt2, llama
from tests.training.conftest import sensing


class Narrow(LlamaForCausalLM):
    """A Llama that cannot project chosen positions alone."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **rest: Any) -> Any:  # type: ignore[override]  # the narrower signature is the point
        rest.pop("logits_to_keep", None)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **rest)


def narrow() -> nn.Module:
    """The tiny Llama, as such a one."""
    base = llama()
    base.__class__ = Narrow
    return base


def batch() -> dict[str, Tensor]:
    """Prompts and answers of different lengths."""
    rows = [([5, 6, 7], [8, END]), ([9], [10, 11, 12, END]), ([13, 14], [END])]
    made = AnswerCollator({}, PAD)([TokenizedExample(p, a, "", {}) for p, a in rows])
    made.pop("answers")
    return made


@pytest.mark.parametrize("make", [llama, narrow, gpt2])
def test_the_loss_is_the_bases_own(make: Any) -> None:
    """Law: with the sense absent, the loss equals what the base gives for the same labels."""
    model = sensing(make())
    expected = model.base(**batch()).loss
    torch.testing.assert_close(answer_loss(model, model.base, batch()), expected, atol=1e-6, rtol=0)


def test_the_bases_differ_in_what_they_take() -> None:
    """Law: one of the bases above keeps chosen positions and one does not."""
    assert keeps_positions(llama())
    assert not keeps_positions(narrow())


@pytest.mark.parametrize("make", [llama, narrow])
def test_logits_at_positions_are_the_models_own(make: Any) -> None:
    """Law: logits at chosen positions equal those of a whole forward pass there."""
    model, given = sensing(make()), batch()
    given.pop("labels")
    places = torch.tensor([0, 3])
    chosen = logits_at(model, model.base, given, places)
    torch.testing.assert_close(chosen, model.base(**given).logits[:, places])


def test_the_batch_is_left_as_it_was(model: SafeModel) -> None:
    """Law: computing the loss takes nothing out of the batch."""
    given = batch()
    answer_loss(model, model.base, given)
    assert given.keys() == batch().keys()


def test_a_finite_loss_is_passed_on() -> None:
    """Law: a loss that is a number comes back as it is."""
    loss = torch.tensor(2.0)
    assert check_finite(loss, "task loss", 3) is loss


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_no_number_is_named(value: str) -> None:
    """Law: the error names the loss, its value, the step and the fix."""
    words = rf"^the task loss is {value} at step 3\nhint: lower the learning rates"
    with pytest.raises(FloatingPointError, match=words):
        check_finite(torch.tensor(float(value)), "task loss", 3)


def test_parts_of_a_batch_add_up(model: SafeModel) -> None:
    """Law: with the count of the whole, the losses of its unequal rows are its loss."""
    whole = batch()
    count = (whole["labels"][:, 1:] != IGNORED).sum()
    parts = [{key: value[row : row + 1] for key, value in whole.items()} for row in range(3)]
    summed = torch.stack([answer_loss(model, model.base, part, count) for part in parts]).sum()
    torch.testing.assert_close(summed, answer_loss(model, model.base, whole))
