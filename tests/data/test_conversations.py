"""Rows that are conversations: turns, samples and pictures in them, and what is wrong with one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from safe_framework.data.chat_template import ChatTemplate
from safe_framework.data.conversations import Talk, turns_of, whole_of
from safe_framework.data.examples import Example, read_task, read_text_rows
from safe_framework.data.readers import Row
from safe_framework.data.tasks import TaskFormat
from safe_framework.errors import DataError
from safe_framework.interfaces.samples import each_of
from tests.support.chats import ENDS, TEMPLATES, speaking
from tests.support.toys import ToyEncoder

NAMES = sorted(TEMPLATES)


class Touch(ToyEncoder):
    """The toy modality, of arrays, as files hold them."""

    def prepare(self, samples: Any) -> Mapping[str, Tensor]:
        return super().prepare([torch.as_tensor(sample) for sample in samples])


def user(*parts: Any) -> dict[str, Any]:
    """What a user says and sends."""
    texts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": texts}


def says(text: str) -> dict[str, Any]:
    """What the assistant says."""
    return {"role": "assistant", "content": text}


def read(file: Path, name: str = "chatml", marked: Any = ("touch",)) -> list[Example]:
    """The examples of a file, in one of the templates."""
    words = speaking(name)
    talk = Talk(lambda: ChatTemplate(words), marked)
    return read_task(file, {"touch": Touch()}, TaskFormat(talk=talk))


def written(folder: Path, *rows: Mapping[str, Any]) -> Path:
    """A file of rows, beside the samples that they name."""
    for number in (1, 2):
        np.save(folder / f"{number}.npy", np.full((1, 4), float(number), np.float32))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


SENT = {"type": "touch", "path": "1.npy"}
THREE = [
    user("what is this"), says("high"),
    user(SENT, "and this"), says("low"),
    {"role": "user", "content": "what is that"}, says(" high and low "),
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"llama"}))
def test_every_turn_is_learned_as_it_is_asked(name: str, tmp_path: Path) -> None:
    """Law: of each turn of the assistant's, prompt and answer are what the template makes of it."""
    words = speaking(name)
    chat = ChatTemplate(words)
    examples = read(written(tmp_path, {"messages": THREE}), name, marked=())
    plain = [{**m, "content": m["content"][-1]["text"]} if m["role"] == "user" and
             isinstance(m["content"], list) else m for m in THREE]  # fmt: skip
    assert [example.place for example in examples] == [
        f"rows.jsonl:1, message {number}" for number in (2, 4, 6)
    ]
    for example, end in zip(examples, (1, 3, 5), strict=True):
        ids = words(example.prompt)["input_ids"]
        asked = words.apply_chat_template(plain[:end], add_generation_prompt=True, return_dict=True)
        assert ids == asked["input_ids"]
        assert chat.opens(example.prompt)
        learned = chat.answer_ids(example.answer)
        assert words.convert_ids_to_tokens(learned[-1]) == ENDS[name]
    assert [example.answer for example in examples] == ["high", "low", " high and low "]


def test_a_sample_is_heard_from_its_turn_on(tmp_path: Path) -> None:
    """Law: a turn has what was sent before it, in the text too, and nothing that comes later."""
    examples = read(written(tmp_path, {"messages": THREE}))
    assert ["touch" in example.samples for example in examples] == [False, True, True]
    assert [example.prompt.count("<touch>") for example in examples] == [0, 1, 1]
    assert [example.aligned for example in examples] == [(), ("low",), ()]
    before = "<|im_start|>user\n<touch>and this<|im_end|>\n"
    assert all(before in example.prompt for example in examples[1:])


def test_two_samples_in_two_turns(tmp_path: Path) -> None:
    """Law: a later turn has both, in the order in which they were sent."""
    second = {"type": "touch", "path": "2.npy"}
    talk = [*THREE[2:4], user("and", second), says("high")]
    one, both = read(written(tmp_path, {"messages": talk, "align": ["low", "high"]}))
    assert (one.aligned, both.aligned) == (("low",), ("low", "high"))
    assert [np.asarray(s).tolist() for s in each_of(both.samples["touch"])] == [
        [[1.0] * 4], [[2.0] * 4],
    ]  # fmt: skip
    assert both.prompt.count("<touch>") == 2


FORMS: dict[str, dict[str, Any]] = {
    "parts": {"messages": [user(SENT, "what"), says("high")]},
    "url": {"messages": [user({"type": "touch", "url": "1.npy"}, "what"), says("high")]},
    "own key": {"messages": [user({"type": "touch", "touch": "1.npy"}, "what"), says("high")]},
    "a field of the row": {
        "touch": "1.npy",
        "messages": [user({"type": "touch"}, "what"), says("high")],
    },
    "places in a text": {
        "touch": ["1.npy"],
        "messages": [{"role": "user", "content": "<touch>what"}, says("high")],
    },
    "columns of a table": {
        "messages": json.dumps([user({**SENT, "text": None, "url": None}, "what"), says("high")])
    },
    "parts of the answer": {
        "messages": [
            user(SENT, "what"),
            {"role": "assistant", "content": [{"type": "text", "text": "high"}], "name": None},
        ]
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_conversation(form: str, tmp_path: Path) -> None:
    """Law: however a conversation is written, it is the same example."""
    (example,) = read(written(tmp_path, FORMS[form]))
    assert example.prompt.startswith("<|im_start|>user\n<touch>what<|im_end|>")
    assert example.answer == "high"
    assert np.asarray(example.samples["touch"]).tolist() == [[1.0] * 4]


def test_pictures_stay_in_their_turn() -> None:
    """Law: pictures come in order, those of later turns later, and leave their places."""
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    row = Row("rows:1", Path(), {
        "kind": "colour",
        "messages": [
            user({"type": "image", "image": red}, "what"), says("high"),
            user({"type": "image"}, "and"), says("low"),
        ],
        "images": [blue],
    })  # fmt: skip
    first, second = turns_of(row, ["touch"])
    assert (first.values["images"], second.values["images"]) == (red, [red, blue])
    assert second.values["kind"] == "colour"
    assert [part["type"] for part in second.values["messages"][2]["content"]] == ["image", "text"]


MISTAKES: list[tuple[Any, str]] = [
    ([], r"rows.jsonl:1: `messages` must be a list of messages"),
    ("[1", r"`messages` begins as a list and is none"),
    ([{"content": "what"}], r"1, message 1: it is no message with a `role`"),
    ([user("what"), says("")], r"1, message 2: the assistant says nothing"),
    ([user("what")], r"no turn of the assistant's, and nothing to learn"),
    ([{"role": "user", "content": 7}, says("high")], r"message 1: `content` must be a text or"),
    ([user({"type": "smell"}), says("high")], r"message 1: a part is of no known type.*`touch`"),
    ([user({"type": "touch"}), says("high")], r"message 1: a `touch` part holds 0 of them"),
    ([user({**SENT, "url": "2.npy"}), says("high")], r"a `touch` part holds 2 of them"),
    ([user("what"), {"role": "assistant", "content": [SENT]}], r"2: the assistant says text alone"),
    ([user({"type": "touch", "path": "9.npy"}), says("high")], r"message 2.*9.npy"),
]


@pytest.mark.parametrize(("messages", "message"), MISTAKES, ids=lambda one: str(one)[:24])
def test_what_is_wrong_names_row_and_turn(messages: Any, message: str, tmp_path: Path) -> None:
    """Law: a conversation that cannot be used says where it is wrong and what to write."""
    with pytest.raises(DataError, match=rf"(?s){message}"):
        read(written(tmp_path, {"messages": messages}))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("question", "what", "both `messages` and `question`"),
        ("touch", "2.npy", "`touch` holds 1, and its messages have 0 places for them"),
    ],
)
def test_fields_beside_messages(field: str, value: str, message: str, tmp_path: Path) -> None:
    """Law: what a row says besides is said into a message, or is an error that says so."""
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, {"messages": THREE, field: value}))


def test_a_template_that_refuses_names_the_turn(tmp_path: Path) -> None:
    """Law: what a template takes no more is said with the row and the turn."""
    file = written(tmp_path, {"messages": [user("what"), user("is"), says("high")]})
    with pytest.raises(DataError, match=r"rows.jsonl:1, message 3: .*must alternate"):
        read(file, "gemma")
    talk = Talk(lambda: None, ())
    with pytest.raises(DataError, match=r"no chat template, which `messages` need"):
        read_task(file, {"touch": Touch()}, TaskFormat(talk=talk))


def test_conversations_that_stay_the_bases(tmp_path: Path) -> None:
    """Law: such a row is one text, all turns of it, and has no sample."""
    words = speaking("chatml")
    talk = Talk(lambda: ChatTemplate(words), ())
    plain = [{"role": "user", "content": "what"}, says("high"), user("and"), says("low")]
    file = written(tmp_path, {"messages": plain}, {"text": "this"})
    rows = read_text_rows(file, talk=talk, modalities=["touch"])
    plain[2] = {"role": "user", "content": "and"}
    assert [row.text for row in rows] == [
        words.apply_chat_template(plain, tokenize=False), "this",
    ]  # fmt: skip
    row = Row("rows:1", tmp_path, {"messages": THREE})
    with pytest.raises(DataError, match=r"rows:1, message 3: a part is a sample of `touch`"):
        whole_of(row, ["touch"])


def test_a_bad_turn_is_left_out(tmp_path: Path) -> None:
    """Law: with `skipped`, a conversation that cannot be used is listed, and the others stay."""
    skipped: list[DataError] = []
    file = written(tmp_path, {"messages": [user("what")]}, {"messages": THREE})
    talk = Talk(lambda: ChatTemplate(speaking("chatml")), ())
    examples = read_task(file, {"touch": Touch()}, TaskFormat(talk=talk), skipped)
    assert [len(examples), len(skipped)] == [3, 1]
