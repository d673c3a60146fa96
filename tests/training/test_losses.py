"""The task's loss."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import logits_at
from safe_framework.interfaces.types import IGNORED
from safe_framework.training.batches import AnswerCollator, TokenizedExample
from safe_framework.training.objective import answer_loss, check_finite
from tests.support.tolerance import FORWARD, assert_same_sums
from tests.support.toys import END, PAD, gpt2, llama
from tests.training.conftest import model_with_modality


class Headless(LlamaForCausalLM):
    """A Llama that does not say which of its modules makes the logits."""

    def get_output_embeddings(self) -> None:  # type: ignore[override]  # as models without one do
        return None


class Positional(LlamaForCausalLM):
    """A Llama that drops the first position behind its head, and puts it back as zeros."""

    def forward(self, *args: Any, **rest: Any) -> Any:
        out = super().forward(*args, **rest)
        out.logits = nn.functional.pad(out.logits[:, 1:], (0, 0, 1, 0))
        return out if out.logits.shape[0] > 1 else type(out)(logits=out.logits[:, :-1])


def as_kind(kind: type[nn.Module]) -> Any:
    """Makes the tiny Llama as one of these."""

    def make() -> nn.Module:
        base = llama()
        base.__class__ = kind
        return base

    return make


def batch() -> dict[str, Tensor]:
    """Prompts and answers of different lengths."""
    rows = [([5, 6, 7], [8, END]), ([9], [10, 11, 12, END]), ([13, 14], [END])]
    made = AnswerCollator({}, PAD)([TokenizedExample(p, a, "", {}) for p, a in rows])
    made.pop("answers")
    return made


KINDS = {"llama": llama, "gpt2": gpt2, "headless": as_kind(Headless)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_bases_own(kind: str) -> None:
    """Law: with the modality absent, the loss equals what the base gives for the same labels."""
    model = model_with_modality(KINDS[kind]())
    expected = model.base(**batch()).loss
    assert_same_sums(answer_loss(model, model.base, batch()), expected, FORWARD)


@pytest.mark.parametrize("kind", [*KINDS, "positional"])
def test_logits_at_places_are_the_models_own(kind: str) -> None:
    """Law: logits at chosen places equal those of a whole forward pass there."""
    model, given = (
        model_with_modality((KINDS | {"positional": as_kind(Positional)})[kind]()),
        batch(),
    )
    given.pop("labels")
    places = torch.zeros_like(given["attention_mask"], dtype=torch.bool)
    places[0, 2] = places[1, 0] = places[1, 3] = True
    chosen = logits_at(model, model.base, given, places)
    assert_same_sums(chosen, model.base(**given).logits[places], FORWARD)


def test_the_vocabulary_is_projected_at_chosen_places_alone() -> None:
    """Law: the output embeddings are shown as many hidden states as words are scored."""
    model, shown = model_with_modality(llama()), []
    model.base.lm_head.register_forward_hook(
        lambda module, args, out: shown.append(out.shape[:-1].numel())
    )
    given = batch()
    answer_loss(model, model.base, given)
    assert shown == [int((given["labels"] != -100).sum())]


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
    assert_same_sums(summed, answer_loss(model, model.base, whole), FORWARD)
