"""Pictures reach the base's own processor, each with its text, and nothing is dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.config.schema import DataSpec
from safe_framework.core.model import SafeModel
from safe_framework.core.processor import SafeProcessor
from safe_framework.core.prompt_rows import PromptEncoder
from safe_framework.data.pictures import Picture
from safe_framework.data.prompts import recipe_chat
from safe_framework.errors import DataError, KeywordError, SafeError, SampleError
from safe_framework.utils.tensors import bitwise_equal
from safe_framework.verification.target import MadeUpEncoder, with_made_up_modality
from tests.support.lanes import slow_but
from tests.support.seeing import llava, picture, seeing_bases
from tests.support.toys import PAD, tokenizer

RED, BLUE = picture("red"), picture("blue", 20, 14)
PLACED_BY_BASE = {"blip-2-opt", "blip-2-t5", "instructblip", "florence2"}
CHATS = ["llava", "llava-next", "qwen2-vl", "gemma3", "mllama", "internvl", "smolvlm"]
CHAT = DataSpec(train="train.jsonl", chat=True)

Processors = Callable[[str], SafeProcessor]


@pytest.fixture(scope="module")
def processors() -> Processors:
    """The processor of a type, around the real one of a tiny model of it."""
    made: dict[str, SafeProcessor] = {}

    def processor(name: str) -> SafeProcessor:
        """Made once."""
        if name not in made:
            made[name] = SafeProcessor(seeing_bases()[name]()[1], {})
        return made[name]

    return processor


def same(found: Any, wanted: Any) -> bool:
    """Whether two batches hold the same tensors."""
    if found.keys() != wanted.keys():
        return False
    return all(bitwise_equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", slow_but(["llava", "qwen2-vl", "florence2"], seeing_bases()))
def test_it_is_the_bases_own_call(processors: Processors, name: str) -> None:
    """Law: what comes out is what the base's own processor makes of the texts and pictures."""
    ours = processors(name)
    texts = ["what is this", "this is a red cat on the mat"]
    placed = [ours.place_images(text, 1) for text in texts]
    wanted = ours.base_processor(
        text=placed, images=[[RED], [BLUE]], return_tensors="pt", padding=True, padding_side="left"
    )
    for images in ([RED, BLUE], [[RED], [BLUE]], ([RED], BLUE)):
        assert same(ours(text=texts, images=images), wanted)
        assert same(ours(question=placed, images=images), wanted)
    alone = ours.base_processor(text=placed[:1], images=[[RED]], return_tensors="pt")
    for one in (RED, [RED], [[RED]]):
        assert same(ours(texts[0], images=one), alone)


@pytest.mark.parametrize("name", slow_but(["llava", "paligemma"], seeing_bases()))
def test_texts_alone_need_no_picture(processors: Processors, name: str) -> None:
    """Law: a text without a picture is the base's own reading of it; None is no picture."""
    ours = processors(name)
    plain = ours(["what is this", "a cat"])
    refuses = name == "paligemma"  # its processor, not the model
    base = ours.tokenizer if refuses else ours.base_processor
    options: Any = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    assert same(plain, base(text=["what is this", "a cat"], **options))
    assert same(ours(["what is this", "a cat"], images=[None, []]), plain)


@pytest.mark.parametrize(
    "name",
    slow_but(["llava", "gemma3"], [one for one in seeing_bases() if one not in PLACED_BY_BASE]),
)
def test_rows_with_pictures_and_rows_without(processors: Processors, name: str) -> None:
    """Law: a batch may have several pictures in one text and none in another."""
    ours = processors(name)
    texts = ["what is this", "a cat", "a dog"]
    counts = [2, 0, 1]
    placed = [ours.place_images(text, n) for text, n in zip(texts, counts, strict=True)]
    images = [[RED, BLUE], [], [RED]]
    wanted = ours.base_processor(
        text=placed, images=images, return_tensors="pt", padding=True, padding_side="left"
    )
    assert same(ours(texts, images=[[RED, BLUE], None, RED]), wanted)
    assert same(ours(placed, images=[RED, BLUE, RED]), wanted)  # as many as the texts name


@pytest.mark.parametrize("name", slow_but(["llava", "blip-2-opt"], seeing_bases()))
def test_places(processors: Processors, name: str) -> None:
    """Law: a text has a placeholder for each picture exactly where the base wants one."""
    ours = processors(name)
    token = ours.pictures.token
    assert ours.place_images("what", 0) == "what"
    if name in PLACED_BY_BASE:
        assert ours.place_images("what", 1) == "what"
        with pytest.raises(SampleError, match=r"leave `<image>` out"):
            ours.place_images("<image> what", 1)
        with pytest.raises(SampleError, match=r"one picture with each text.*text 1 has 0"):
            ours(["what", "a cat"], images=[RED, None])
        return
    for count in (1, 3):
        placed = ours.place_images("what", count)
        assert placed.endswith("what")
        assert placed.count(token) == count
        assert ours.place_images(placed, count) == placed
    with pytest.raises(SampleError, match=r"names 2 pictures .*, but 1 is given"):
        ours.place_images(f"{token}{token}what", 1)
    with pytest.raises(SampleError, match=r"names 1 picture .*, but 0 are given"):
        ours(f"{token}what")


def test_qwens_picture_has_its_frame(processors: Processors) -> None:
    """A picture stands as the base's chat template writes it, start and end included."""
    wanted = "<|vision_start|><|image_pad|><|vision_end|>what"
    assert processors("qwen2-vl").place_images("what", 1) == wanted


def chatting(name: str) -> SafeProcessor:
    """A type's processor in the chat of a recipe."""
    base = seeing_bases()[name]()[1]
    return SafeProcessor(base, {}, prompt="{question}?", chat=recipe_chat(CHAT, base))


@pytest.mark.parametrize("name", slow_but(["llava"], CHATS))
def test_a_chat_begins_with_its_pictures(name: str) -> None:
    """Law: in a recipe's chat, a question with pictures is the base's own chat of them."""
    ours = chatting(name)
    talk = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": RED},
                {"type": "image", "image": BLUE},
                {"type": "text", "text": "what is this?"},
            ],
        }
    ]
    wanted = ours.apply_chat_template(
        talk, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    assert same(ours(question="what is this", images=[[RED, BLUE]]), wanted)
    assert same(ours(text=ours.prompt("what is this"), images=[[RED, BLUE]]), wanted)


def test_a_template_without_pictures_is_told_of() -> None:
    """Law: where the base's template takes no pictures, a chat with some is an error with a fix."""
    base = llava()[1]
    base.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chat = recipe_chat(CHAT, base)
    assert chat is not None
    assert chat.question("{question}") == "{question}"
    with pytest.raises(DataError, match=r"takes no message with pictures.*\nhint: leave out `chat"):
        chat.question("{question}", images=1)


def test_forms_of_a_picture(processors: Processors, tmp_path: Path) -> None:
    """Law: a file's name, its bytes and a picture of a row are what the picture itself is."""
    ours, file = processors("llava"), tmp_path / "blue.png"
    BLUE.save(file)
    wanted = ours("what", images=BLUE)
    for form in (file, str(file), file.read_bytes(), Picture(file), Picture(BLUE)):
        assert same(ours("what", images=[form]), wanted)
    with pytest.raises(DataError, match=r"the picture `.*red.png` does not exist"):
        ours("what", images=str(tmp_path / "red.png"))


def test_numbers_that_do_not_fit(processors: Processors) -> None:
    """Law: more or fewer entries than texts are an error that names both numbers."""
    with pytest.raises(SampleError, match=r"3 entries for 2 texts.*\nhint: give one for each text"):
        processors("llava")(["a cat", "a dog"], images=[[RED], [BLUE], [RED]])


@pytest.mark.parametrize("keyword", ["images", "videos"])
def test_a_tokenizer_sees_nothing(keyword: str) -> None:
    """Law: a base that reads text alone refuses what it would not see."""
    given: dict[str, Any] = {keyword: [RED]}
    with pytest.raises(SafeError, match=f"the base takes no {keyword}"):
        SafeProcessor(tokenizer(), {})("w3", **given)


def test_a_base_that_does_not_hear_refuses_sound(processors: Processors) -> None:
    """Law: a keyword that the base's processor has and cannot use is refused, not dropped."""
    with pytest.raises(SafeError, match=r"the base takes no audio: `LlavaProcessor` does not read"):
        processors("llava")("what", audio=[[0.0] * 9])


@pytest.mark.parametrize("known", [{"max_length": 4, "truncation": True}, {"do_resize": False}])
def test_the_bases_own_keywords_reach_it(processors: Processors, known: dict[str, Any]) -> None:
    """Law: keywords of the base's tokenizer and image processor are taken as they are."""
    ours = processors("llava")
    images: dict[str, Any] = {} if "max_length" in known else {"images": [RED]}
    texts = ["what is this thing that ran"] if not images else ["<image>what"]
    assert same(
        ours(texts, **images, **known),
        ours.base_processor(text=texts, return_tensors="pt", padding=True, **images, **known),
    )


@pytest.mark.parametrize(
    ("wrong", "meant"), [("imagse", ""), ("max_lenght", "max_length"), ("do_resise", "do_resize")]
)
def test_an_unknown_keyword_is_named(processors: Processors, wrong: str, meant: str) -> None:
    """Law: a misspelt keyword is a TypeError that offers the nearest one."""
    message = f"`{wrong}` is neither a modality nor a keyword of the base's `LlavaProcessor`"
    hint, given = f"did you mean `{meant or 'images'}`", dict[str, Any]({wrong: [RED]})
    with pytest.raises(KeywordError, match=f"{message}\nhint: {hint}") as caught:
        processors("llava")("what", **given)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("name", slow_but(["llava", "paligemma", "mllama"], seeing_bases()))
def test_answers_stand_behind_pictures(name: str) -> None:
    """Law: a batch with its labels is the one that training by a recipe makes of the same rows."""
    base, processor = seeing_bases()[name]()
    model = with_made_up_modality(base, processor)
    texts, answers, images = ["what is this", "a cat"], ["red", "a blue dog"], [RED, BLUE]
    ours = model.prepare_multimodal_inputs(
        texts, images=images, answers=answers, training_mode=True
    )
    encoder = PromptEncoder.of(model)
    for number, (text, answer, image) in enumerate(zip(texts, answers, images, strict=True)):
        alone = model.prepare_multimodal_inputs(
            text, images=[image], answers=answer, training_mode=True
        )
        prompt = encoder.prompt(text, [Picture(image)])
        if encoder.start is None:
            wanted = encoder.collate([prompt.followed_by(encoder.answer(answer))], PAD)
            alone.pop("labels")
            assert same(alone, wanted)
            learned = ours["labels"][number]
            assert learned[learned >= 0].tolist() == encoder.answer(answer)
        assert torch.isfinite(model(**ours).loss)


MARKED = [
    "what <sense> is this",
    "<sense>what is this",
    "what is this<sense>",
    "what is this picture of a dog <sense> and a cat",
    "what is this picture of a dog and a <sense> cat",
    "what is this",
]
START, END = 100_000, 100_001


@pytest.mark.parametrize("name", slow_but(["llava", "paligemma"], seeing_bases()))
def test_markers_stand_in_texts_with_pictures(name: str) -> None:
    """Law: beside a picture a marker stands where the text has it, and moves nothing else."""
    encoder, spans = MadeUpEncoder(), {"sense": (START, END)}
    ours = SafeProcessor(seeing_bases()[name]()[1], {"sense": encoder}, spans=spans)
    value = torch.zeros(1, encoder.dim)
    for text in MARKED:
        texts = [text, "a cat ran away on the mat"]
        batch = ours(texts, images=[RED, BLUE], sense=[value, None])
        plain = ours([text.replace("<sense>", ""), texts[1]], images=[RED, BLUE])
        ids, words = (
            b["input_ids"][0][b["attention_mask"][0] > 0].tolist() for b in (batch, plain)
        )
        place = ids.index(START)
        assert ids[:place] + ids[place + 2 :] == words
        behind = text.partition("<sense>")[2] if not text.startswith("<sense>") else ""
        after = ours.tokenizer(behind, add_special_tokens=False)["input_ids"]
        assert ids[place + 2 :][: len(after)] == after


# Chats.


def talk_of(*parts: Any) -> list[dict[str, Any]]:
    """A message of pictures, samples and a question."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this"}]}]


BATCH: dict[str, Any] = {
    "tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True,
}  # fmt: skip


def test_a_part_may_be_any_form_of_a_picture(processors: Processors, tmp_path: Path) -> None:
    """Law: a file, its name and a picture of a row are the picture, which the base is shown."""
    ours, file = processors("llava"), tmp_path / "blue.png"
    BLUE.save(file)
    wanted = ours.base_processor.apply_chat_template(
        talk_of({"type": "image", "image": BLUE}, {"type": "image", "image": RED}), **BATCH
    )
    assert len(wanted["pixel_values"]) == 2
    second = {"type": "image", "image": RED}
    for key, value in [
        ("image", BLUE), ("image", Picture(file)), ("path", str(file)), ("path", file),
        ("url", str(file)), ("image", file.read_bytes()),
    ]:  # fmt: skip
        talk = talk_of({"type": "image", key: value}, second)
        assert same(ours.apply_chat_template(talk, **BATCH), wanted)
    with pytest.raises(DataError, match=r"the picture `.*red.png` does not exist"):
        ours.apply_chat_template(talk_of({"type": "image", "path": tmp_path / "red.png"}), **BATCH)


@pytest.mark.parametrize("spans", [{}, {"sense": (START, END)}])
def test_pictures_and_samples_of_a_chat(spans: dict[str, tuple[int, ...]]) -> None:
    """Law: a sample in a chat with a picture adds its tensors, and its markers where it stood."""
    encoder, base = MadeUpEncoder(), llava()[1]
    ours = SafeProcessor(base, {"sense": encoder}, spans=spans)
    image, value = {"type": "image", "image": RED}, torch.zeros(1, encoder.dim)
    found = ours.apply_chat_template(talk_of(image, {"type": "sense", "sense": value}), **BATCH)
    wanted = base.apply_chat_template(talk_of(image), **BATCH)
    assert bitwise_equal(found["pixel_values"], wanted["pixel_values"])
    assert found["sense__present"].tolist() == [True]
    (ids,) = found["input_ids"].tolist()
    assert [one for one in ids if one < START] == wanted["input_ids"][0].tolist()
    if spans:
        text = base.tokenizer.decode(ids[ids.index(END) + 1 :])
        assert text.startswith("what is this")


def test_a_tokenizer_takes_no_pictures_in_a_chat() -> None:
    """Law: where the base reads text alone, or its tokenizer has the template, none is dropped."""
    reads, sees = tokenizer(), llava()[1]
    reads.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    sees.tokenizer.chat_template, sees.chat_template = reads.chat_template, None
    for base in (reads, sees):
        ours = SafeProcessor(base, {})
        with pytest.raises(SampleError, match="a part of type 'image' is taken by neither"):
            ours.apply_chat_template(talk_of({"type": "image", "image": RED}))
        words = ours.apply_chat_template([{"role": "user", "content": "w3"}], tokenize=False)
        assert words == "w3"


def test_a_sense_may_be_called_image(tmp_path: Path) -> None:
    """Law: parts and keywords of a modality's name are its own, whatever the base takes."""

    class Names(MadeUpEncoder):
        """Its samples are the lengths of what they are given."""

        def prepare(self, samples: Any) -> dict[str, Tensor]:
            """A row of ones for each."""
            assert all(isinstance(one, torch.Tensor) for one in samples)
            return super().prepare(samples)

    encoder = Names()
    ours = SafeProcessor(llava()[1], {"image": encoder, "images": encoder})
    value = torch.zeros(1, encoder.dim)
    batch = ours("what", images=[value])
    assert "pixel_values" not in batch
    assert batch["images__present"].tolist() == [True]
    chat = ours.apply_chat_template(talk_of({"type": "image", "image": value}), **BATCH)
    assert "pixel_values" not in chat
    assert chat["image__present"].tolist() == [True]


# The laws, with pictures.


@pytest.fixture(scope="module")
def model() -> SafeModel:
    """A LLaVA with its real processor and an awake sense."""
    made = with_made_up_modality(*llava())
    generator = torch.Generator().manual_seed(0)
    for parameter in made.trainable_parameters().values():
        parameter.data.normal_(std=0.5, generator=generator)
    return made


@torch.no_grad()
def logits(call: Any, batch: Any) -> Tensor:
    """The logits of a batch."""
    out: Tensor = call(**batch).logits
    return out


def sample(model: SafeModel, rows: int) -> dict[str, Any]:
    """The made-up sense's samples, one a row."""
    (name,) = model.modalities
    value = torch.linspace(-1, 1, model.modality(name).encoder.dim).numpy()[None]
    return {name: [value] * rows}


def test_off_is_the_bases_own_call_with_pictures(model: SafeModel) -> None:
    """Law: absent and at gate 0, logits and tokens are the base's of its own processor's batch."""
    texts, images = ["what is this", "a cat ran"], [RED, BLUE]
    own = model.base_processor(
        text=[f"<image>{text}" for text in texts],
        images=images, return_tensors="pt", padding=True, padding_side="left",
    )  # fmt: skip
    absent = model.processor(texts, images=images)
    heard = model.processor(texts, images=images, **sample(model, 2))
    base, options = logits(model.base, own), {"max_new_tokens": 4, "do_sample": False}
    tokens = model.base.generate(**own, **options)  # type: ignore[operator]  # a method
    assert bitwise_equal(logits(model, absent), base)
    assert torch.equal(model.generate(**absent, **options), tokens)
    assert bitwise_equal(model(**heard, gate=0.0).logits, base)
    assert torch.equal(model.generate(**heard, gate=0.0, **options), tokens)
    with model.off():
        assert bitwise_equal(logits(model, heard), base)
    assert not torch.equal(logits(model, heard), base)


@pytest.mark.parametrize("on", [True, False])
def test_another_picture_is_another_answer(model: SafeModel, on: bool) -> None:
    """Law: with the sense on and off, another picture changes the logits."""
    samples = sample(model, 1) if on else {}
    red, blue = (model.processor("what is this", images=one, **samples) for one in (RED, BLUE))
    assert not torch.equal(logits(model, red), logits(model, blue))
