"""Pictures beside samples, in one call: in questions, in batches, in chats, and as a stream."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import TextIteratorStreamer

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.data.audio import read_audio
from safe_framework.errors import SafeError, SampleError
from safe_framework.pretrained import quietly
from safe_framework.serving.engine import Request, Sampling
from tests.runs.conftest import RATE, write_whisper
from tests.serving.hearing import answered
from tests.support.seeing import picture, save, seeing_bases

LONGEST = 6
RECIPE = """
[base]
model = "{folder}/base"

[modalities.audio]
encoder = {{ use = "whisper", model = "{folder}/whisper" }}
projector = {{ use = "standard", tokens = 2, hidden_dim = 8 }}
fusion = {{ use = "lora", rank = 2, layers = [0, 1] }}
{markers}
[data]
train = "train.jsonl"
chat = true
"""
RED, BLUE = picture("red"), picture("blue", 20, 14)


@pytest.fixture(scope="module", params=["llava", "llava with markers", "qwen2-vl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SafeModel:
    """A base that sees, built by a recipe, whose untrained sense was moved away from silence."""
    folder = tmp_path_factory.mktemp("seeing")
    name, _, markers = request.param.partition(" with ")
    with quietly():
        save(folder / "base", *seeing_bases()[name]())
    write_whisper(folder / "whisper")
    row = '{"audio": "a.wav", "question": "what", "answer": "red"}'
    (folder / "train.jsonl").write_text(row, "utf-8")
    recipe = RECIPE.format(folder=folder, markers="markers = true" if markers else "")
    (folder / "recipe.toml").write_text(recipe, "utf-8")
    found = safe_framework.build(folder / "recipe.toml")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in found.trainable_parameters().values():
            parameter.normal_(generator=generator)
    return found


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """The file of a short tone."""
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(0.2 * np.arange(RATE // 5)), RATE)
    return str(tmp_path / "tone.wav")


def seen(*parts: Any) -> list[dict[str, Any]]:
    """A chat of one message."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this"}]}]


def of_base(model: SafeModel, *pictures: Any) -> str:
    """What the base itself answers, by its own processor and nothing of ours."""
    talk = seen(*({"type": "image", "image": one} for one in pictures))
    batch = model.base_processor.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    out: Any = model.base.generate(**batch, max_new_tokens=LONGEST)  # type: ignore[operator]
    new = out[0, batch["input_ids"].shape[1] :]
    return str(model.tokenizer.decode(new, skip_special_tokens=True)).strip()


def test_every_form_answers_as_alone(model: SafeModel, clip: str, tmp_path: Path) -> None:
    """Law: a mixed list of questions and chats, with pictures and sounds, answers as one by one."""
    BLUE.save(tmp_path / "blue.png")
    mixed: list[Any] = [
        {"question": "what is this", "audio": clip, "image": RED},
        {"question": "what is this", "image": str(tmp_path / "blue.png")},
        {"question": "what is this", "images": [RED, BLUE], "audio": None},
        {"question": "what is this", "audio": clip},
        seen(
            {"type": "audio", "path": clip}, {"type": "image", "path": str(tmp_path / "blue.png")}
        ),
        seen({"type": "image", "image": RED}),
        "what",
    ]
    pipe = safe_framework.pipeline(model)
    together = [one["generated_text"] for one in pipe(mixed, max_new_tokens=LONGEST)]
    assert together == [pipe(one, max_new_tokens=LONGEST)[0]["generated_text"] for one in mixed]
    assert len(set(together)) > 3  # they are answers to what was asked
    assert together[1] == of_base(model, BLUE)
    assert together[2] == of_base(model, RED, BLUE)
    assert together[5] == of_base(model, RED)


def test_off_is_the_base_beside_a_picture(model: SafeModel, clip: str) -> None:
    """Law L2: at gate 0 and within ``off()``, the base answers of the picture, sound or none."""
    pipe = safe_framework.pipeline(model)
    inputs: list[Any] = [
        {"question": "what is this", "audio": clip, "image": RED},
        seen({"type": "audio", "path": clip}, {"type": "image", "image": RED}),
    ]
    wanted = [{"generated_text": of_base(model, RED)}] * 2
    assert pipe(inputs, gate=0.0, max_new_tokens=LONGEST) == wanted
    with model.off():
        assert pipe(inputs, max_new_tokens=LONGEST) == wanted


def test_picture_and_sound_both_count(model: SafeModel, clip: str) -> None:
    """Law: in one call, another picture and another sound each change the logits."""

    def logits(image: Any, audio: Any) -> torch.Tensor:
        batch = model.processor(
            question="what is this", images=[image], audio=[audio], sampling_rate=RATE
        )
        with torch.no_grad():
            out: torch.Tensor = model(**batch).logits[:, -1]
        return out

    tone = np.sin(0.2 * np.arange(RATE // 5)).astype(np.float32)
    both = logits(RED, tone)
    assert not torch.equal(both, logits(BLUE, tone))
    assert not torch.equal(both, logits(RED, tone[::-1].copy() * 0.1))
    assert not torch.equal(both, logits(RED, None))


def test_an_answer_streams(model: SafeModel, clip: str) -> None:
    """Law: a streamer is given the words of an answer to picture and sound as they come."""
    asked = {"question": "what is this", "audio": clip, "image": RED}
    pipe = safe_framework.pipeline(model)
    streamer: Any = TextIteratorStreamer(
        model.tokenizer, skip_prompt=True, skip_special_tokens=True
    )
    (whole,) = pipe(asked, max_new_tokens=LONGEST, streamer=streamer)
    assert "".join(streamer).strip() == whole["generated_text"]
    assert (whole,) == tuple(pipe(asked, max_new_tokens=LONGEST))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"question": "what", "imagse": [RED]}, r"`imagse`, which is no modality.*\nhint: did you"),
        ({"question": "what", "image": RED, "images": [RED]}, "both `image` and `images`"),
    ],
)
def test_mistakes(model: SafeModel, wrong: dict[str, Any], message: str) -> None:
    """Law: what an input has and nothing reads is named."""
    with pytest.raises(SafeError, match=message):
        safe_framework.pipeline(model)(wrong)


def test_a_base_that_needs_a_picture_says_so() -> None:
    """Law: a text alone, of which such a base makes nothing, is an error that says what to add."""
    pipe = safe_framework.pipeline(SafeModel(*seeing_bases()["blip-2-opt"]()))
    assert pipe({"text": "what", "image": RED}, max_new_tokens=2)[0]["generated_text"]
    with pytest.raises(SafeError, match=r"answers no text without a picture\nhint: add an .image"):
        pipe("what")


def test_a_number_that_does_not_fit(model: SafeModel) -> None:
    """Law: a text that names another number of pictures than it has is an error."""
    token = model.processor.pictures.token
    with pytest.raises(SampleError, match=r"names 2 pictures .*, but 1 is given"):
        safe_framework.pipeline(model)({"text": f"{token}{token}what", "image": RED})


def test_the_page_runs(model: SafeModel) -> None:
    """The page's example of pictures runs as it is written, on a model that sees."""
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text("utf-8")
    block = page.partition("## Pictures")[2].partition("```python\n")[2].partition("```")[0]
    tree = ast.parse(block)
    tree.body = [one for one in tree.body if "safe_framework.load" not in ast.unparse(one)]
    names: dict[str, Any] = {"model": model, "wave": np.zeros(RATE // 5, np.float32)}
    exec(compile(tree, "docs/python.md", "exec"), names)
    assert len(tree.body) == 4
    assert names["batch"]["audio__present"].tolist() == [True, False]


def test_the_engine_answers_as_the_pipeline(model: SafeModel, clip: str) -> None:
    """Law: with pictures, sounds, both and neither, all at once, each gets what it gets alone."""
    sound = {"type": "audio", "audio": read_audio(clip, RATE)}
    pictures = [{"type": "image", "image": one} for one in (RED, BLUE)]
    kinds = [seen(), seen(pictures[0]), seen(sound), seen(pictures[1], sound), seen(*pictures)]
    pipe = safe_framework.pipeline(model)
    expected = [pipe(one, max_new_tokens=LONGEST)[0]["generated_text"] for one in kinds]
    told = answered(model, *(Request(one, sampling=Sampling(max_tokens=LONGEST)) for one in kinds))
    assert [one.error for one in told] == [None] * 5
    assert [one.text[0].strip() for one in told] == expected
    assert [dict(one.gates) for one in told] == [{}, {}, {"audio": 1.0}, {"audio": 1.0}, {}]
    assert len(set(expected)) >= 4
