"""Classes that are read at a modality's tokens."""

import numpy as np
import pytest
import torch

from safe_framework.core.class_readout import ClassReadout
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder
from safe_framework.data.examples import Example
from safe_framework.errors import DataError
from safe_framework.evaluation.answers import answer
from safe_framework.interfaces.types import IGNORED
from safe_framework.training.batches import AnswerCollator, tokenize
from safe_framework.training.objective import answer_loss
from tests.support.toys import DIM, PAD
from tests.training.test_markers import model as model  # a fixture

LABELS = ("w10", "w11 w12", "w13")


def example(sample: np.ndarray | None, wanted: str = "w11 w12", prompt: str = "w5") -> Example:
    """A row whose class is read at the tokens."""
    samples = {} if sample is None else {"touch": sample}
    return Example(prompt, wanted, samples, "t:1", labels=LABELS, at_tokens=True)


def batch_of(model: SafeModel, *examples: Example) -> dict[str, torch.Tensor]:
    """As training makes it."""
    rows = [
        tokenize(
            PromptEncoder.of(model),
            one,
            {name: model.encode(name, [s]) for name, s in one.samples.items()},
        )
        for one in examples
    ]
    batch = AnswerCollator({"touch": DIM}, PAD)(rows)
    batch.pop("answers")
    return batch


def test_the_answer_is_not_shown(model: SafeModel, samples: list[np.ndarray]) -> None:
    """Law: a row that is read at its tokens has its prompt alone, and no label."""
    batch = batch_of(model, example(samples[0]))
    assert batch["input_ids"].shape[1] == 5  # two markers, two tokens, one word
    assert (batch["labels"] == IGNORED).all()


def test_the_loss_is_that_of_the_class_logits_at_the_tokens(
    model: SafeModel, samples: list[np.ndarray]
) -> None:
    """Law: the loss is the mean over tokens of cross-entropy between the labels' first ids."""
    batch = batch_of(model, example(samples[0]))
    loss = answer_loss(model, model.base, batch)
    ClassReadout.taken(batch)
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    first = [model.tokenizer(label)["input_ids"][0] for label in LABELS]
    read = logits[0, 1:3][:, first].log_softmax(-1)  # behind the start marker
    torch.testing.assert_close(loss, -read[:, 1].mean())
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.trainable_parameters().values())


def test_rows_of_other_tasks_keep_their_loss(model: SafeModel, samples: list[np.ndarray]) -> None:
    """Law: beside answers, a row read at its tokens counts as one more token of an answer."""
    asked = Example("w6 w7", "w8", {"touch": samples[1]}, "t:2")
    read = answer_loss(model, model.base, batch_of(model, example(samples[0])))
    spelled = answer_loss(model, model.base, batch_of(model, asked))
    both = answer_loss(model, model.base, batch_of(model, example(samples[0]), asked))
    torch.testing.assert_close(both, (read + 2 * spelled) / 3)  # the answer and its end


def test_a_row_without_a_sample_is_answered(model: SafeModel) -> None:
    """Law: where no token stands, the label is learned as an answer."""
    batch = batch_of(model, example(None))
    assert "class_ids" not in batch
    assert (batch["labels"] != IGNORED).sum() == 3


def test_labels_that_begin_alike_are_refused(model: SafeModel, samples: list[np.ndarray]) -> None:
    """Law: two labels with one first token cannot be read at a place, which is said with both."""
    alike = Example("w5", "w3 w4", {"touch": samples[0]}, labels=("w3 w4", "w3"), at_tokens=True)
    with pytest.raises(DataError, match=r"`w3 w4` and `w3` begin with the same token.*\nhint: "):
        batch_of(model, alike)


def test_evaluation_reads_the_same_logits(model: SafeModel, samples: list[np.ndarray]) -> None:
    """Law: the answer is the label with the least loss at the tokens."""
    asked = [example(sample) for sample in samples]
    with torch.no_grad():
        losses = [
            [answer_loss(model, model.base, batch_of(model, example(s, one))) for one in LABELS]
            for s in samples
        ]
        given = answer(
            model, [e.__class__(**{**_fields(e), "task": "classification"}) for e in asked]
        )
    assert given == [LABELS[int(torch.stack(row).argmin())] for row in losses]


def _fields(example: Example) -> dict[str, object]:
    return {
        name: getattr(example, name)
        for name in ("prompt", "answer", "samples", "labels", "at_tokens")
    }
