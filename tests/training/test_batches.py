"""From examples to padded batches."""

import numpy as np
import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.core.padding import attention_mask, pad_right
from safe_framework.core.prompt_rows import PromptEncoder
from safe_framework.data.examples import Example
from safe_framework.errors import DataError
from safe_framework.interfaces.samples import Several
from safe_framework.interfaces.types import IGNORED, Frames, all_real
from safe_framework.training.batches import (
    AnswerCollator,
    TokenizedExample,
    modality_columns,
    tokenize,
)
from tests.support.toys import DIM, END, PAD, tokenizer


def frames(length: int, value: float = 1.0) -> Frames:
    """One row of frames."""
    values = torch.full((1, length, DIM), value)
    return Frames(values, all_real(values))


class Mute:
    """A tokenizer that makes nothing of any text."""

    eos_token_id = END

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        return {"input_ids": []}


def example(
    prompt: list[int], answer: list[int], *, touch: Frames | None = None
) -> TokenizedExample:
    """A finished example, with or without a sample."""
    return TokenizedExample(
        prompt, [*answer, END], "text", {} if touch is None else {"touch": touch}
    )


def test_an_answer_ends_with_the_end_token() -> None:
    """Law: prompt and answer are tokenized apart, and the end token follows the answer."""
    made = tokenize(PromptEncoder(tokenizer()), Example(prompt="w3 w4", answer="w5 w6"), {})
    assert (made.prompt.ids, made.answer, made.text) == ((3, 4), [5, 6, END], "w5 w6")


def test_alignment_is_drawn_to_the_rows_own_words() -> None:
    """Law: what a sample is aligned with is the row's ``align``, else its answer."""
    prompts = PromptEncoder(tokenizer())
    named = Example(prompt="w3", answer="w5", align="w7")
    plain = Example(prompt="w3", answer="w5")
    made = [tokenize(prompts, one, {}) for one in (named, plain)]
    assert AnswerCollator({}, PAD)(made)["answers"] == [("w7",), ("w5",)]
    assert [one.text for one in made] == ["w5", "w5"]


def test_an_answer_without_tokens_is_refused() -> None:
    """Law: an answer that the tokenizer makes nothing of is an error that gives its place."""
    with pytest.raises(DataError, match=r"^train\.jsonl:3: the answer '!' has no tokens"):
        tokenize(PromptEncoder(Mute()), Example(prompt="w3", answer="!", place="train.jsonl:3"), {})


def test_only_answer_and_end_are_labelled() -> None:
    """Law: labels are the answer's ids and the end token; prompt and padding are ignored."""
    batch = AnswerCollator({}, PAD)([example([3, 4, 5], [6]), example([7], [8])])
    assert batch["input_ids"].tolist() == [[3, 4, 5, 6, END], [7, 8, END, PAD, PAD]]
    assert batch["labels"].tolist() == [
        [IGNORED, IGNORED, IGNORED, 6, END],
        [IGNORED, 8, END, IGNORED, IGNORED],
    ]


def test_padding_is_on_the_right_and_masked() -> None:
    """Law: the mask is 1 on real ids, an end token that is also the pad token included."""
    batch = AnswerCollator({}, END)([example([3, 4], [5]), example([7], [8])])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"][1].tolist() == [IGNORED, 8, END, IGNORED]


def test_a_batch_carries_each_rows_frames() -> None:
    """Law: rows of a modality are in the examples' order, padded and masked, absent ones marked."""
    rows = [
        example([3], [4], touch=frames(2)),
        example([3], [4]),
        example([3], [4], touch=frames(3, 2)),
    ]
    batch = AnswerCollator({"touch": DIM}, PAD)(rows)
    assert batch["touch__present"].tolist() == [True, False, True]
    assert batch["touch__frames_mask"].sum(1).tolist() == [2, 0, 3]
    assert batch["touch__frames"].sum((1, 2)).tolist() == [2 * DIM, 0, 6 * DIM]
    assert batch["answers"] == [("text",)] * 3


def test_a_batch_carries_several_samples_in_slots() -> None:
    """Law: a row's frames fill slots in order; rows with fewer have empty ones behind them."""
    both = Several([frames(2), frames(1, 3)])
    rows = [example([3], [4], touch=both), example([3], [4]), example([3], [4], touch=frames(1))]
    batch = AnswerCollator({"touch": DIM}, PAD)(rows)
    assert batch["touch__present"].tolist() == [[True, True], [False, False], [True, False]]
    assert batch["touch__frames"].shape == (3, 2, 2, DIM)
    assert batch["touch__frames"].sum((2, 3)).tolist() == [[2 * DIM, 3 * DIM], [0, 0], [DIM, 0]]
    assert batch["touch__frames_mask"].sum(2).tolist() == [[2, 1], [0, 0], [1, 0]]
    assert batch["answers"] == [(), ("text",), ("text",)]


def test_a_model_takes_what_is_carried(model: SafeModel, samples: list[np.ndarray]) -> None:
    """Law: finished frames give bitwise what the samples themselves do, absent rows too."""
    with torch.no_grad():
        model.modality("touch").fusion.blocks["0"].output.lora_B["default"].weight.fill_(1)
    encoded = model.encode("touch", samples[:2])
    one, two = (encoded.rows(torch.tensor([row])) for row in range(2))
    raw = model.modality("touch").encoder.prepare(samples[:2])
    rows = torch.tensor([0, 0, 1])
    given = {f"touch__{key}": value[rows] for key, value in raw.items()}
    present = torch.tensor([True, False, True])
    ids = torch.tensor([[5, 6], [7, 8], [9, 10]])
    finished = model.eval()(
        input_ids=ids, **modality_columns("touch", [one, None, two], DIM)
    ).logits
    assert torch.equal(finished, model(input_ids=ids, touch__present=present, **given).logits)
    assert not torch.equal(finished, model.base(input_ids=ids).logits)


def test_masks_and_ids_have_one_shape() -> None:
    """Law: rows of any lengths become one rectangle."""
    rows = [[1, 2, 3], [4], [5, 6]]
    assert pad_right(rows, 9).tolist() == [[1, 2, 3], [4, 9, 9], [5, 6, 9]]
    assert attention_mask(rows).tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
