"""What belongs to the picture of a held-out text: a sample, and what several people answered."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safe_framework.data.examples import read_text_rows
from safe_framework.errors import DataError
from safe_framework.testing.toys import ToyEncoder
from tests.support import seeing


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    """A file of these rows."""
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_sample_is_read_beside_a_picture(tmp_path: Path) -> None:
    """Law: a picture question's sample is read for who asks for it, and left alone otherwise."""
    np.save(tmp_path / "felt.npy", np.ones((3, 4), np.float32))
    seeing.picture("red").save(tmp_path / "red.png")
    asked = {"question": "what", "answer": "dog", "touch": "felt.npy"}
    path = written(
        tmp_path,
        {**asked, "image": "red.png"},
        {"question": "what", "answer": "dog", "image": "red.png"},
        {**asked, "touch": "not read.npy"},  # no picture, so that it is not asked
    )
    own, other, text = read_text_rows(path, encoders={"touch": ToyEncoder()})
    assert own.samples["touch"].shape == (3, 4)
    assert own.files == {"touch": tmp_path / "felt.npy"}
    assert not other.samples
    assert not text.samples
    assert not read_text_rows(path)[0].samples


def test_a_file_name_is_the_pictures_and_no_sample(tmp_path: Path) -> None:
    """Law: in a folder of pictures, ``file_name`` is never read as the modality's sample."""
    seeing.picture("red").save(tmp_path / "red.png")
    path = written(tmp_path, {"question": "what", "answer": "red", "file_name": "red.png"})
    (row,) = read_text_rows(path, encoders={"touch": ToyEncoder()})
    assert len(row.images) == 1
    assert not row.samples


def test_people_are_those_who_answered_or_the_one_answer(tmp_path: Path) -> None:
    """Law: ``answers`` come first, as texts or as VQA writes them; else there is one or none."""
    path = written(
        tmp_path,
        {"question": "what", "answer": "dog", "answers": ["dog", "puppy"]},
        {"question": "what", "answers": [{"answer": "dog", "answer_id": 1}]},
        {"question": "what", "answers": '["dog", "cat"]'},
        {"question": "what", "answer": "dog"},
        {"question": "what"},
    )
    found = [row.people for row in read_text_rows(path)]
    assert found == [("dog", "puppy"), ("dog",), ("dog", "cat"), ("dog",), ()]


@pytest.mark.parametrize("answers", ["dog", [], ["dog", ""], [1], [{"said": "dog"}], {"a": "b"}])
def test_answers_that_are_none_are_named(tmp_path: Path, answers: Any) -> None:
    """Law: anything but a list of texts is refused, with the row."""
    with pytest.raises(DataError, match=r"texts\.jsonl:1: `answers` must be a list of texts"):
        read_text_rows(written(tmp_path, {"question": "what", "answers": answers}))
