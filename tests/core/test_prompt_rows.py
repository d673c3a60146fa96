"""Rows of token ids and pictures, and the batches that are made of them."""

from typing import Any

import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.core.padding import per_token_inputs
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow, groups_of
from safe_framework.data.pictures import Picture
from safe_framework.errors import SafeError
from safe_framework_plugins.projectors.standard import StandardProjector
from tests.support.lanes import slow_but
from tests.support.seeing import picture, seeing_bases
from tests.support.toys import DIM, lora, tokenizer
from tests.training.conftest import ArrayEncoder

BASES = seeing_bases()
ONE_PICTURE = ("blip-2-opt", "blip-2-t5", "instructblip", "florence2")
PICTURES = [
    [Picture(picture("red"))],
    [Picture(picture("red", 20, 12)), Picture(picture("blue", 12, 16))],
]


def test_bases_are_tried() -> None:
    """Law: there are bases that see to try."""
    assert "llava" in BASES


@pytest.fixture(params=slow_but(["llava", "mllama"], BASES))
def seeing(request: pytest.FixtureRequest) -> tuple[str, SafeModel]:
    """A model on each base that sees."""
    base, processor = BASES[request.param]()
    return request.param, SafeModel(base, processor)


def rows_of(name: str, model: SafeModel) -> list[PromptRow]:
    """Two rows of unequal lengths, with as many pictures as the base takes."""
    prompts = PromptEncoder.of(model)
    most = 1 if name in ONE_PICTURE else 2
    texts = ["what is this that which", "the cat"]
    return [prompts.prompt(t, p[:most]) for t, p in zip(texts, PICTURES, strict=True)]


def test_rows_make_the_processors_own_batch(seeing: tuple[str, SafeModel]) -> None:
    """Law: rows that were processed one by one make, bit for bit, what the processor makes of all.

    What it says of padding is no matter.
    """
    name, model = seeing
    rows = rows_of(name, model)
    made = PromptEncoder.of(model).collate(rows, model.processor.padding)
    made.pop("decoder_input_ids", None)
    wanted: Any = model.processor(
        text=[row.text for row in rows],
        images=[[one.open() for one in row.images] for row in rows],
        padding_side="right",
    )
    wanted.pop("labels", None)
    assert made.keys() == wanted.keys()
    real = wanted["attention_mask"].bool()
    for key, value in wanted.items():
        given, expected = made[key].to(value.dtype), value
        if key in per_token_inputs(wanted, real.shape):
            given, expected = given[real], expected[real]
        assert torch.equal(given, expected), key


def test_rows_are_padded_on_the_left(seeing: tuple[str, SafeModel]) -> None:
    """Law: padded on the left, every value of a token stands before the same token."""
    name, model = seeing
    rows, prompts = rows_of(name, model), PromptEncoder.of(model)
    right, left = (prompts.collate(rows, 0, left=side) for side in (False, True))
    masks = [batch["attention_mask"].bool() for batch in (right, left)]
    assert not torch.equal(*masks)
    assert right.keys() == left.keys()
    for key, value in right.items():
        given, expected = left[key], value
        if key in per_token_inputs(right, masks[0].shape):
            given, expected = given[masks[1]], expected[masks[0]]
        assert torch.equal(given, expected), key


def test_an_answer_follows_the_prompt(seeing: tuple[str, SafeModel]) -> None:
    """Law: what follows a prompt lengthens each value of a token, and pictures stay as they are."""
    name, model = seeing
    prompts, pad = PromptEncoder.of(model), model.processor.padding
    row = rows_of(name, model)[0]
    longer = row.followed_by([5, 6])
    short, made = prompts.collate([row], pad), prompts.collate([longer], pad)
    answered = "decoder_input_ids" if row.target else "input_ids"
    assert made[answered].tolist() == [[*row.predicting, 5, 6]]
    for key, value in short.items():
        if made[key].shape == value.shape:
            assert torch.equal(made[key], value), key
        else:
            assert made[key].shape[1] == value.shape[1] + 2, key
            assert torch.equal(made[key][:, :-2], value), key


def test_a_row_is_its_ids_and_pictures() -> None:
    """Law: rows are equal if their ids and the contents of their pictures are."""
    red, again, blue = (Picture(picture(colour)) for colour in ("red", "red", "blue"))
    row = PromptRow([3, 4], [red], text="a text")
    assert row == PromptRow([3, 4], [again], text="another")
    assert hash(row) == hash(PromptRow([3, 4], [again]))
    assert len({row, PromptRow([3, 4], [blue]), PromptRow([3, 5], [red]), PromptRow([3, 4])}) == 4


def test_pictures_without_pixels_are_what_the_tower_alone_reads() -> None:
    """Law: a batch without pixels is the same but for what the image tower reads."""
    base, processor = seeing_bases()["llava"]()
    model = SafeModel(base, processor)
    rows, prompts = rows_of("llava", model), PromptEncoder.of(model)
    whole, without = (prompts.collate(rows, 0, pixels=pixels) for pixels in (True, False))
    assert {key for key in whole if key not in without} == {"pixel_values"}
    assert all(torch.equal(value, whole[key]) for key, value in without.items())


def test_rows_are_grouped_by_pictures() -> None:
    """Law: rows with pictures and rows without are in calls of their own."""
    plain, seen = PromptRow([3]), PromptRow([3], [Picture(picture("red"))])
    assert groups_of([seen, plain, seen]) == [[1], [0, 2]]
    assert groups_of([seen]) == [[0]]
    with pytest.raises(SafeError, match="calls of their own"):
        PromptEncoder(tokenizer()).collate([plain, seen], 0)


def test_markers_stand_among_the_placeholders() -> None:
    """Law: a prompt's markers are where the processor puts them for the same call."""
    base, processor = seeing_bases()["llava"]()
    model = SafeModel(base, processor)
    model.add_modality(
        "touch",
        encoder=ArrayEncoder(),
        projector=StandardProjector(DIM, model.stack.hidden_size, tokens=2, hidden_dim=8),
        fusion=lora(model),
        markers=True,
    )
    text, red = "<image> what is <touch> this", picture("red")
    row = PromptEncoder.of(model).prompt(text, [Picture(red)], {"touch": 1})
    sample = torch.zeros(2, DIM).numpy()
    wanted = model.processor(text=[text], images=[[red]], touch=[sample])
    assert wanted["input_ids"].tolist() == [list(row.ids)]
    made = PromptEncoder.of(model).collate([row], 0)
    assert torch.equal(made["pixel_values"], wanted["pixel_values"])
