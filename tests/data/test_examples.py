"""Reading examples and texts from JSONL."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from torch import Tensor

from safe_framework.data.aligned_words import words_for
from safe_framework.data.examples import read_examples, read_text_rows, read_texts
from safe_framework.data.readers import read_rows
from safe_framework.data.tasks import unique
from safe_framework.errors import DataError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Several
from safe_framework.interfaces.types import Frames

RATE = 8000


class Reader(Encoder):
    """An encoder of which only what it takes matters."""

    dim = 1

    def __init__(self, sampling_rate: int | None) -> None:
        super().__init__()
        self.sampling_rate = sampling_rate

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        raise NotImplementedError

    def forward(self, **inputs: Tensor) -> Frames:
        raise NotImplementedError


ENCODERS = {"audio": Reader(RATE), "touch": Reader(None)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a sound at twice the encoder's rate and an array."""
    (tmp_path / "sounds").mkdir()
    tone = np.sin(np.arange(2 * RATE) / 50)
    soundfile.write(tmp_path / "sounds/tone.wav", tone, 2 * RATE)
    np.save(tmp_path / "touch.npy", np.arange(3.0))
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "empty.npz").touch()
    for name in ("text.npy", "text.png"):
        (tmp_path / name).write_text("no array at all")
    return tmp_path


def write(folder: Path, *rows: object) -> Path:
    """A JSONL file; a text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / "train.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


GOOD = {"question": "What is it?", "answer": "a tone", "audio": "sounds/tone.wav"}


def test_a_row_becomes_an_example(folder: Path) -> None:
    """Law: the question is put into the template, and the position and the file are kept."""
    path = write(folder, GOOD)
    (example,) = read_examples(path, ENCODERS, "Q: {question} A:")
    assert (example.prompt, example.answer) == ("Q: What is it? A:", "a tone")
    assert example.place == "train.jsonl:1"
    assert example.files == {"audio": folder / "sounds/tone.wav"}


def test_sound_comes_at_the_encoders_rate(folder: Path) -> None:
    """Law: a sampled signal is resampled to what the encoder takes."""
    (example,) = read_examples(write(folder, GOOD), ENCODERS)
    sample = example.samples["audio"]
    assert (sample.sampling_rate, len(sample.values)) == (RATE, RATE)


def test_other_samples_are_arrays(folder: Path) -> None:
    """Law: for an encoder without a rate, the file is an array."""
    (example,) = read_examples(
        write(folder, {**GOOD, "audio": None, "touch": "touch.npy"}), ENCODERS
    )
    assert example.samples["touch"].tolist() == [0, 1, 2]


def test_an_absent_modality_has_no_key(folder: Path) -> None:
    """Law: a modality that a row lacks, or gives as null, is absent from the example."""
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "answer": "a", "audio": None}]
    examples = read_examples(write(folder, *rows), ENCODERS)
    assert [(e.samples, e.files) for e in examples] == [({}, {}), ({}, {})]


def test_empty_lines_are_skipped_and_counted(folder: Path) -> None:
    """Law: an empty line is no row, and later rows keep their line numbers."""
    path = write(folder, "", {"text": "one"}, "  ", {"text": "two"})
    assert [where for where, _ in read_rows(path)] == ["train.jsonl:2", "train.jsonl:4"]


def test_a_line_ends_only_where_a_newline_is(folder: Path) -> None:
    """Law: a line separator inside a text is part of the text."""
    path = folder / "texts.jsonl"
    path.write_text('{"text": "one\u2028two\x85three"}\n{"text": "four"}\n', "utf-8")
    assert [row.text for row in read_text_rows(path)] == ["one\u2028two\x85three", "four"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", r":2:2: not JSON: "),
        ("[1]", r":2: a row must be a JSON object, not list$"),
        (
            {"answer": "a"},
            r":2: `question` must be a text .*\nhint: its fields are: answer; ask one question of ",
        ),
        ({"question": "q"}, r":2: `answer` must be a text that is not empty, not None"),
        ({"question": "q", "answer": " "}, r":2: `answer` must be a text that is not empty"),
        ({"question": "q", "answer": 3}, r":2: `answer` must be a text .* not 3"),
        ({**GOOD, "audio": "gone.wav"}, r":2: the sound file `.*gone\.wav` does not exist"),
        ({**GOOD, "audio": "train.jsonl"}, r":2: the sound file .* cannot be read"),
        ({**GOOD, "touch": "gone.npy"}, r":2: the file `.*gone\.npy` does not exist$"),
        ({**GOOD, "touch": "gone.png"}, r":2: the image `.*gone\.png` does not exist$"),
        ({**GOOD, "touch": "train.jsonl"}, r":2: `.*` is no file that .*\nhint: save it as \.npy"),
        ({**GOOD, "touch": "text.npy"}, r":2: `.*text\.npy` cannot be read as an array: .*\nhint"),
        ({**GOOD, "touch": "empty.npz"}, r":2: `.*empty\.npz` cannot be read as an array: "),
        ({**GOOD, "touch": "text.png"}, r":2: the image `.*text\.png` cannot be read: .*\nhint"),
        ({**GOOD, "touch": "two.npz"}, r":2: `.*two\.npz` holds 2 arrays, .*\nhint: save one"),
        ({**GOOD, "touch": "objects.npy"}, r":2: `.*objects\.npy` cannot be read as an array: "),
        ({**GOOD, "audio": 3}, r":2: `audio` must be the name of a file, not 3"),
        ({**GOOD, "audio": ""}, r":2: `audio` must be the name of a file, not ''"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(folder: Path, row: object, words: str) -> None:
    """Law: the error starts with the file and line of the row, and says what is wrong."""
    path = write(folder, GOOD, row)
    with pytest.raises(DataError, match=r"^train\.jsonl" + words):
        read_examples(path, ENCODERS)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_rows_is_refused(folder: Path, content: str) -> None:
    """Law: an empty file is an error that names it, not an empty data set."""
    (folder / "none.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"none\.jsonl` has no rows"):
        read_rows(folder / "none.jsonl")


def test_a_missing_file_is_named(folder: Path) -> None:
    """Law: a file that does not exist is an error that names it."""
    with pytest.raises(DataError, match=r"gone\.jsonl` does not exist"):
        read_rows(folder / "gone.jsonl")


def test_a_file_that_is_no_text_is_named(folder: Path) -> None:
    """Law: a file in another encoding is an error that names it."""
    (folder / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl` is not UTF-8"):
        read_rows(folder / "latin.jsonl")


def test_texts_are_read_as_they_are(folder: Path) -> None:
    """Law: `text` is not put into the template; `question` is."""
    path = write(folder, {"text": "as it {question} is"}, {"question": "why?"})
    texts = read_texts(path, "Q: {question}")
    assert texts == ["as it {question} is", "Q: why?"]


def test_a_row_without_text_is_named(folder: Path) -> None:
    """Law: a retention row with neither text nor question is an error that gives its line."""
    path = write(folder, {"text": "one"}, {"title": "two"})
    said = r"^train\.jsonl:2: `text` must be .*\nhint: .*: title; say which of them"
    with pytest.raises(DataError, match=said):
        read_text_rows(path)


def test_distinct_keeps_the_first_of_each() -> None:
    """Law: repeats go, the order of first appearance stays."""
    assert unique(["b", "a", "b", "c", "a"]) == ["b", "a", "c"]


def test_a_row_says_what_alignment_draws_to(tmp_path: Path) -> None:
    """Law: ``align`` of a row is kept beside its answer; one that is no text is an error."""
    file = tmp_path / "rows.jsonl"
    row = {"question": "is it", "answer": "yes"}
    file.write_text(json.dumps({**row, "align": "duck"}) + "\n" + json.dumps(row), "utf-8")
    assert [one.aligned for one in read_examples(file, {})] == [("duck",), ("yes",)]
    file.write_text(json.dumps({**row, "align": 3}), "utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: `align` must be a text"):
        read_examples(file, {})


PAIR = {"question": "which is first", "answer": "a tone", "touch": ["touch.npy", "other.npy"]}


def test_a_row_may_have_several_samples(folder: Path) -> None:
    """Law: samples and files keep their order; a list of one is one, an empty list none."""
    np.save(folder / "other.npy", np.ones(2))
    rows = [PAIR, {**PAIR, "touch": ["other.npy"]}, {**PAIR, "touch": []}]
    two, one, none = read_examples(write(folder, *rows), ENCODERS)
    assert isinstance(two.samples["touch"], Several)
    assert [sample.tolist() for sample in two.samples["touch"]] == [[0, 1, 2], [1, 1]]
    assert two.files == {"touch": Several([folder / "touch.npy", folder / "other.npy"])}
    assert (one.samples["touch"].tolist(), one.files) == ([1, 1], {"touch": folder / "other.npy"})
    assert (none.samples, none.files) == ({}, {})
    (folder / "train.csv").write_text(
        'question,answer,touch\nq,a,"[""touch.npy"", ""other.npy""]"\n', "utf-8"
    )
    (cell,) = read_examples(folder / "train.csv", ENCODERS)
    assert cell.files == two.files


def test_each_sample_of_a_row_has_its_place(folder: Path) -> None:
    """Law: a question's places stand for the template's; else all samples stand at that one."""
    np.save(folder / "other.npy", np.ones(2))
    named = {**PAIR, "question": "is <touch> louder than <touch>"}
    rows = [PAIR, named, {**PAIR, "touch": "touch.npy"}]
    found = read_examples(write(folder, *rows), ENCODERS, "<touch> {question}")
    assert [one.prompt for one in found] == [
        "<touch><touch> which is first",
        " is <touch> louder than <touch>",
        "<touch> which is first",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": "<touch> what"}, "text names 1 place `<touch>`, and it has 2 samples of `to"),
        (
            {"question": "<touch><touch> what", "touch": "touch.npy"},
            "text names 2 places `<touch>`, and it has 1 sample of `touch`\nhint: write `<touch>`",
        ),
        ({"touch": ["touch.npy", None]}, r"`touch\[1\]` must be the name of a file, not None"),
        ({"touch": ["touch.npy", ""]}, r"`touch\[1\]` must be the name of a file, not ''"),
        ({"touch": '["touch.npy"'}, "`touch` begins as a list and is none: "),
        ({"align": ["a", "b", "c"]}, "`align` has 3 texts, and the row's samples are 2 of `touch`"),
        ({"align": ["a", 3]}, "`align` must hold texts that are not empty"),
    ],
    ids=str,
)
def test_several_samples_that_cannot_be_used_are_named(
    folder: Path, change: Mapping[str, Any], words: str
) -> None:
    """Law: the error has the row, and which sample or how many places are wrong."""
    np.save(folder / "other.npy", np.ones(2))
    with pytest.raises(DataError, match=r"^train\.jsonl:1: (its )?" + words):
        read_examples(write(folder, {**PAIR, **change}), ENCODERS)


def test_alignment_of_several_samples_needs_words_for_each(folder: Path) -> None:
    """Law: one text is for all, a list for each; an answer about several is no sample's word."""
    np.save(folder / "other.npy", np.ones(2))
    rows = [PAIR, {**PAIR, "align": "duck"}, {**PAIR, "align": ["duck", "cat"]}]
    found = [one.aligned for one in read_examples(write(folder, *rows), ENCODERS)]
    assert found == [(), ("duck",), ("duck", "cat")]
    assert [list(words_for(words, 2)) for words in found] == [[], ["duck"] * 2, ["duck", "cat"]]
