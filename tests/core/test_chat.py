"""Chat messages with samples: the base's own template and tokens, and the samples beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from safe_framework.core.processor import SafeProcessor
from safe_framework.errors import DataError, SafeError, SampleError
from tests.support.toys import IMAGE, WORDS, ToyEncoder, tokenizer

TEMPLATE = "{% for m in messages %}{{ 'w9 ' + m['content'] + ' w10 ' }}{% endfor %}"
PROMPT = TEMPLATE + "{% if add_generation_prompt %}{{ 'w11' }}{% endif %}"
TOUCH = torch.ones(1, 4)
SPANS = {"touch": (40, 42, 41)}


class Touch(ToyEncoder):
    """The toy modality, of arrays too, as files hold them."""

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        return super().prepare([torch.as_tensor(sample) for sample in samples])


def chatty() -> Any:
    """Words with a chat template that takes texts alone."""
    words = tokenizer()
    words.chat_template = PROMPT
    return words


def talking(**options: Any) -> SafeProcessor:
    """Words with a chat template, and touch."""
    return SafeProcessor(chatty(), {"touch": Touch()}, **options)


def message_of(*parts: Any, role: str = "user") -> dict[str, Any]:
    """A message of parts; a string is a part of text."""
    texts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": role, "content": texts}


TOUCH_PART = {"type": "touch", "touch": TOUCH}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokenize": False},
        {"add_generation_prompt": True, "return_dict": False},
        {"padding": True, "return_tensors": "pt"},
    ],
    ids=str,
)
@pytest.mark.parametrize("batched", [False, True])
def test_without_a_sample_it_is_the_bases_own(options: dict[str, Any], *, batched: bool) -> None:
    """Law: no modality part, no difference: type, keys, values and padding are the tokenizer's."""
    talk: Any = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5"}]
    talk = [talk, talk[:1]] if batched else talk
    if batched and "return_tensors" not in options:
        options = {**options, "padding": True}
    expected = chatty().apply_chat_template(talk, **options)
    found = talking().apply_chat_template(talk, **options)
    assert type(found) is type(expected)
    assert str(found) == str(expected)


def test_ids_beside_a_sample_are_the_bases() -> None:
    """Law: a sample adds its tensors and no id; the text's are the base's for the same words."""
    plain = [{"role": "user", "content": "w3 w4"}]
    base = chatty().apply_chat_template(plain, add_generation_prompt=True)
    batch = talking().apply_chat_template(
        [message_of(TOUCH_PART, "w3 w4")], add_generation_prompt=True
    )
    assert batch["input_ids"].tolist() == [base["input_ids"]] == [[9, 3, 4, 10, 11]]
    assert batch["attention_mask"].tolist() == [[1] * 5]
    direct = talking()("w3", touch=[TOUCH])
    assert {key for key in direct if key.startswith("touch__")} == {
        key for key in batch if key.startswith("touch__")
    }
    assert torch.equal(batch["touch__values"], direct["touch__values"])


def test_conversations_become_rows() -> None:
    """Law: samples stay with their conversations; a row without one is absent."""
    talks = [[message_of("w3"), message_of(TOUCH_PART, "w4")], [{"role": "user", "content": "w5"}]]
    batch = talking().apply_chat_template(talks)
    assert batch["input_ids"].tolist() == [[9, 3, 10, 9, 4, 10], [0, 0, 0, 9, 5, 10]]
    assert batch["touch__present"].tolist() == [True, False]


def test_markers_stand_where_the_part_stood() -> None:
    """Law: a modality with markers marks the position of its part, in the text and in its ids."""
    talk = [message_of("w3 ", TOUCH_PART, " w4")]
    batch = talking(spans=SPANS).apply_chat_template(talk)
    assert batch["input_ids"].tolist() == [[9, 3, 40, 42, 41, 4, 10]]
    text = talking(spans=SPANS).apply_chat_template(talk, tokenize=False)
    assert text == "w9 w3 <touch> w4 w10 "
    assert talking().apply_chat_template(talk, tokenize=False) == "w9 w3  w4 w10 "


@pytest.mark.parametrize("key", ["path", "url", "touch"])
@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_part_may_name_a_file(key: str, form: str, tmp_path: Path) -> None:
    """Law: the file of a sample may be its path or an address on this machine, under any key."""
    np.save(tmp_path / "touch.npy", TOUCH.numpy())
    part = {"type": "touch", key: form.format(tmp_path / "touch.npy")}
    batch = talking().apply_chat_template([message_of(part, "w3")], return_dict=True)
    assert torch.equal(batch["touch__values"], torch.ones(1, 1, 4))


MISTAKES = [
    (
        {"type": "smell", "path": "x"},
        r"type 'smell' is taken by neither.*\nhint: .*: `text`, `touch`$",
    ),
    ({"text": "w3"}, "type ''"),
    ("image", "type 'image'"),
    ({"type": "touch"}, r"`touch` part holds 0 samples: type\nhint: give one of"),
    ({"type": "touch", "path": "a", "url": "b"}, "holds 2 samples"),
    ({"type": "touch", "url": "https://a.b/c.npy"}, "not read from the network"),
    ({"type": "touch", "path": "nowhere.npy"}, "`touch`: the file `nowhere.npy` does not exist"),
]


@pytest.mark.parametrize(("part", "message"), MISTAKES, ids=lambda one: str(one)[:30])
def test_mistakes_are_named(part: Any, message: str) -> None:
    """Law: a part that cannot be used is an error that says what can."""
    part = {"type": part} if isinstance(part, str) else part
    with pytest.raises(SafeError, match=message):
        talking().apply_chat_template([{"role": "user", "content": [part]}])


NO_MESSAGES: list[tuple[Any, str]] = [
    (None, "no message with a `role`"),
    ({"content": "w3"}, "no message with a `role`"),
    ({"role": 5, "content": "w3"}, "no message with a `role`"),
    ({"role": "user", "content": 5}, "`content` of a message must be a text or a list of parts"),
    ({"role": "user", "content": ["w3"]}, "neither a text nor a sample: 'w3'"),
    (message_of({"type": "text", "text": None}), "neither a text nor a sample"),
    (message_of({"type": "text", "text": 5}), "neither a text nor a sample"),
    (message_of("w3 \ud800"), "half of a surrogate pair"),
]


@pytest.mark.parametrize(("message", "fault"), NO_MESSAGES, ids=lambda one: ascii(one)[:40])
@pytest.mark.parametrize("heard", [True, False])
def test_what_is_no_message_is_named(message: Any, fault: str, heard: bool) -> None:
    """Law: a message that no template can take is an error that shows it."""
    talk = [message_of(TOUCH_PART, "w4"), message] if heard else [message_of("w4"), message]
    with pytest.raises(SafeError, match=fault):
        talking().apply_chat_template(talk)


def test_parts_of_numpy_are_heard() -> None:
    """Law: a list of parts as pandas and Parquet hold it loses no sample."""
    parts = np.array([TOUCH_PART, {"type": "text", "text": "w3"}], dtype=object)
    batch = talking().apply_chat_template([{"role": "user", "content": parts}])
    assert batch["touch__present"].tolist() == [True]
    assert batch["input_ids"].tolist() == [[9, 3, 10]]


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ 1 / 0 }}", "takes no such messages: division by zero"),
        ("{{ messages[0]['content'] + 1 }}", "takes no such messages: can only concatenate"),
        ("{% include 'other' %}", "takes no such messages: no loader"),
        ("{% if false %}w3{% endif %}", "makes an empty text"),
        (None, "has no chat template"),
    ],
)
def test_a_template_that_fails_is_named(template: str | None, fault: str) -> None:
    """Law: whatever a template raises, and where it writes nothing, an error says so."""
    words = chatty()
    words.chat_template = template
    with pytest.raises(DataError, match=fault):
        SafeProcessor(words, {"touch": Touch()}).apply_chat_template([message_of(TOUCH_PART, "w3")])


@pytest.mark.parametrize("content", ["w3", [{"type": "text", "text": "w3"}]], ids=["text", "parts"])
def test_a_template_of_parts_drops_no_text(content: Any) -> None:
    """Law: where a template reads parts alone, a message's text is written all the same."""
    words = chatty()
    words.chat_template = (
        "{% for m in messages %}w9 {% for p in m['content'] %}{{ p['text'] }} {% endfor %}w10 "
        "{% endfor %}"
    )
    talk = [message_of(TOUCH_PART, "w4"), {"role": "assistant", "content": content}]
    processor = SafeProcessor(words, {"touch": Touch()})
    assert processor.apply_chat_template(talk)["input_ids"].tolist() == [[9, 4, 10, 9, 3, 10]]
    alone = processor.chat_batch([talk[1:]], None, {})  # as a pipeline asks
    assert alone["input_ids"].tolist() == [[9, 3, 10]]


def test_a_misspelt_option_is_named() -> None:
    """Law: beside a sample, no option of the call is passed over."""
    talk = [message_of(TOUCH_PART, "w3")]
    with pytest.raises(DataError, match=r"`add_generation_promt`\nhint: did you mean `add_gene"):
        talking().apply_chat_template(talk, add_generation_promt=True)


@pytest.mark.parametrize("text", ["w3 \ud800", None, 5, ["w3"]], ids=ascii)
@pytest.mark.parametrize("name", ["text", "question"])
def test_what_is_no_text_is_named(name: str, text: Any) -> None:
    """Law: what no tokenizer reads is an error that says which text it is."""
    with pytest.raises(SampleError, match=r"half of a surrogate pair|1 is no text") as caught:
        talking()(**{name: ["w3", text]})
    assert caught.value.row == 1


def test_samples_of_several_turns_keep_their_order() -> None:
    """Law: every part of every message is heard, in order, and marked where it stood."""
    other = {"type": "touch", "touch": 2 * TOUCH}
    talk = [
        message_of(TOUCH_PART, "w3 ", other, "w4"),
        {"role": "assistant", "content": "w5"},
        message_of("w6 ", TOUCH_PART),
    ]
    batch = talking().apply_chat_template([talk, talk[:1], talk[1:2]])
    assert batch["touch__present"].tolist() == [[True] * 3, [True, True, False], [False] * 3]
    assert batch["touch__values"][0, :, 0, 0].tolist() == [1, 2, 1]
    marked = talking(spans=SPANS).apply_chat_template(talk)
    expected = [9, 40, 42, 41, 3, 40, 42, 41, 4, 10, 9, 5, 10, 9, 6, 40, 42, 41, 10]
    assert marked["input_ids"].tolist() == [expected]


def test_a_word_that_looks_like_a_place_is_counted() -> None:
    """Law: more places than parts in a marked conversation are an error with both numbers."""
    with pytest.raises(SampleError, match="names 2 places `<touch>` for 1 sample"):
        talking(spans=SPANS).apply_chat_template([message_of(TOUCH_PART, "w3 <touch> w4")])


def seeing() -> Any:
    """A processor of words and pictures, of which one stands for four tokens."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    square = {"height": 4, "width": 4}
    pictures = CLIPImageProcessorPil(size=square, crop_size=square)
    template = (
        "{% for m in messages %}w9 {% for part in m['content'] %}{% if part['type'] == 'image' %}"
        "{{ 'w39 ' }}{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    )
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": [WORDS[IMAGE]]})
    return LlavaProcessor(
        image_processor=pictures, tokenizer=words, patch_size=2, image_token=WORDS[IMAGE],
        vision_feature_select_strategy="full", chat_template=template,
    )  # fmt: skip


def test_pictures_go_to_the_bases_processor() -> None:
    """Law: beside a sample, image parts and texts give the base's processor's own tensors."""
    picture = {"type": "image", "image": Image.new("RGB", (4, 4), "teal")}
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = seeing().apply_chat_template([message_of(picture, "w3 w4")], **options)
    processor = SafeProcessor(seeing(), {"touch": Touch()})
    for parts in ([picture, "w3 w4"], [picture, TOUCH_PART, "w3 w4"]):
        batch = processor.apply_chat_template([message_of(*parts)], **options)
        assert "pixel_values" in batch
        assert all(torch.equal(batch[key], value) for key, value in expected.items())
    assert batch["touch__present"].tolist() == [True]
    with pytest.raises(SampleError, match="`text`, `touch`, `image`, `image_url`"):
        processor.apply_chat_template([message_of({"type": "smell"})])
