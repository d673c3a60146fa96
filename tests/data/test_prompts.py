"""A recipe that asks in the base's own chat template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import processors

import safe_framework
from safe_framework.config.read import read_recipe
from safe_framework.config.schema import DataSpec
from safe_framework.data.chat_template import ChatTemplate
from safe_framework.data.preview import preview
from safe_framework.data.prompts import EARLIER, chats_that_go_on, may_chat, recipe_chat
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import DataError
from tests.core.test_chat import PROMPT, chatty
from tests.support.toys import tokenizer

CHAT = DataSpec(train="train.jsonl", chat=True)
BOS = "{{ bos_token }} " + PROMPT


def starting(template: str) -> Any:
    """Words whose tokenizer puts a start token before every text."""
    words = tokenizer()
    words.add_special_tokens({"bos_token": "w3"})
    words.chat_template = template
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="w3 $A", special_tokens=[("w3", words.bos_token_id)]
    )
    return words


def rendered(data: DataSpec, prompt: str, words: Any) -> str:
    """A prompt in the recipe's chat."""
    chat = recipe_chat(data, words)
    assert chat is not None
    return chat.question(prompt)


def asked(words: Any, *messages: tuple[str, str], end: bool = True) -> list[int]:
    """The ids of a chat before its answer."""
    talk = [{"role": role, "content": content} for role, content in messages]
    ids: list[int] = words.apply_chat_template(
        talk, tokenize=True, add_generation_prompt=end, return_dict=False
    )
    return ids


@pytest.mark.parametrize("words", [chatty(), starting(BOS)], ids=["plain", "start token"])
def test_a_question_makes_the_tokens_of_a_chat(words: Any) -> None:
    """Law: put where the question goes, it gives what the chat template gives, start token once."""
    ids = words(rendered(CHAT, "w5 w6 w7", words))["input_ids"]
    assert ids == asked(words, ("user", "w5 w6 w7"))
    assert ids.count(words.convert_tokens_to_ids("w3")) == (words.bos_token is not None)


def test_the_system_speaks_first() -> None:
    """Law: ``system`` is the system's message of the same chat."""
    words = chatty()
    found = rendered(DataSpec(train="x", chat=True, system="w1 w2"), "w6", words)
    ids = words(found)["input_ids"]
    assert ids == asked(words, ("system", "w1 w2"), ("user", "w6"))


def test_a_processor_is_given_parts() -> None:
    """Law: where a processor renders the chat, a message is a list of parts."""

    class Reading:
        """A processor that shows what it was given."""

        chat_template = PROMPT
        tokenizer = chatty()

        def apply_chat_template(self, talk: Any, **options: Any) -> str:
            """The text of the one part of the one message."""
            (message,) = talk
            ((kind, text),) = [(part["type"], part["text"]) for part in message["content"]]
            assert (kind, options) == ("text", {"tokenize": False, "add_generation_prompt": True})
            return f"w9 {text} w10"

    assert rendered(CHAT, "{question}", Reading()) == "w9 {question} w10"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (tokenizer(), "the base has no chat template.*\nhint: leave it out"),
        (starting(PROMPT), "adds words to a text that its chat template has not\nhint: leave out"),
    ],
    ids=["no template", "other tokens"],
)
def test_a_base_that_cannot_chat_is_reported(words: Any, message: str) -> None:
    """Law: without a template, or with one whose tokens no text makes, an error names the fix."""
    with pytest.raises(DataError, match=message):
        rendered(CHAT, "{question}", words)


@pytest.mark.parametrize(
    "data",
    [
        DataSpec(train="x", chat=False),
        DataSpec(train="x", prompt="Q: {question}"),
        DataSpec(train="x", task="captioning"),
        DataSpec(train="x", task="classification", question="which", read_at="tokens"),
    ],
    ids=["said so", "own prompt", "nothing asked", "nothing answered"],
)
def test_what_is_no_question_in_a_chat_is_asked_in_none(data: DataSpec) -> None:
    """Law: a template is asked for nothing that the recipe does not want in it."""
    assert not may_chat(data)
    assert recipe_chat(data, starting(BOS)) is None


@pytest.mark.parametrize("words", [tokenizer(), starting(PROMPT)], ids=["none", "other tokens"])
def test_a_base_without_a_template_of_use_is_asked_without(words: Any) -> None:
    """Law: where the recipe says nothing, a base that cannot chat is given the question alone."""
    assert may_chat(DataSpec(train="x"))
    assert recipe_chat(DataSpec(train="x"), words) is None


def test_a_question_is_in_a_chat_by_itself() -> None:
    """Law: where the recipe says nothing, a base with a template is asked in it."""
    words = starting(BOS)
    for data in (DataSpec(train="x"), DataSpec(train="x", task="captioning", question="w5")):
        found = recipe_chat(data, words)
        assert found is not None
        assert words(found.question("w6"))["input_ids"] == asked(words, ("user", "w6"))


def test_a_chat_may_go_on_and_have_another_system() -> None:
    """Law: other chats hold what was said before, and a system where the template takes one."""
    words = chatty()
    chat = recipe_chat(CHAT, words)
    assert chat is not None
    found = chats_that_go_on(chat, "w5 {question}")
    assert list(found) == ["after another turn", "with a system message"]
    ids = words(found["after another turn"].replace("{question}", "w6"))["input_ids"]
    earlier = [(one["role"], one["content"]) for one in EARLIER]
    assert ids == asked(words, *earlier, ("user", "w5 w6"))
    words.chat_template = "{{ raise_exception('no') if messages[0]['role'] == 'system' }}" + PROMPT
    assert list(chats_that_go_on(ChatTemplate(words), "{question}")) == ["after another turn"]


@pytest.fixture
def chatting(tmp_path: Path, checkpoints: Path, recipe: Callable[..., Path]) -> Path:
    """A recipe whose base has a chat template, and which asks in it."""
    shutil.copytree(checkpoints / "base", tmp_path / "base")
    chatty().save_pretrained(tmp_path / "base")
    text = recipe().read_text("utf-8").replace(f"{checkpoints}/base", f"{tmp_path}/base")
    (tmp_path / "train.jsonl").write_text('{"question": "w5", "answer": "w6"}\n')
    (tmp_path / "texts.jsonl").write_text('{"text": "w7 w8"}\n{"question": "w9"}\n')
    data = '[data]\ntrain = "train.jsonl"\nretention = "texts.jsonl"\nchat = true\n'
    path = tmp_path / "recipe.toml"
    path.write_text(text + data, "utf-8")
    return path


def test_rows_are_asked_as_the_model_will_be(chatting: Path) -> None:
    """Law: a row's prompt, the processor's, and a chat of the same question are the same tokens."""
    data, model = RecipeData(read_recipe(chatting)), safe_framework.build(chatting)
    (example,) = data.examples("train", {})
    batch = model.processor(question="w5")
    assert batch["input_ids"][0].tolist() == asked(model.tokenizer, ("user", "w5"))
    assert model.processor(text=example.prompt)["input_ids"].equal(batch["input_ids"])
    text, question = data.texts("retention")
    assert (text.text, question.text) == ("w7 w8", model.processor.prompt("w9"))


def test_a_pipeline_answers_a_question_as_in_a_chat(chatting: Path) -> None:
    """Law: ``question`` and a user's message of the same words have the same answer."""
    pipe = safe_framework.pipeline(safe_framework.build(chatting))
    question, chat = pipe(
        [{"question": "w5"}, [{"role": "user", "content": "w5"}]], max_new_tokens=4
    )
    assert question == chat


def test_a_saved_adapter_still_asks_in_the_chat(chatting: Path, tmp_path: Path) -> None:
    """Law: the adapter's recipe keeps ``chat``, so that a loaded model asks in the same form."""
    model = safe_framework.build(chatting)
    model.save_pretrained(tmp_path / "adapter")
    loaded = safe_framework.load(tmp_path / "adapter")
    assert loaded.processor.prompt("w5") == model.processor.prompt("w5") != "w5"


def test_a_recipe_reads_conversations(chatting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: rows with `messages` are read wherever a recipe names rows, and fingerprinted whole."""
    soundfile.write(chatting.parent / "a.wav", np.zeros(1600, np.float32) + 0.1, 16_000)
    sent = {"type": "audio", "path": "a.wav"}
    talk = [
        {"role": "user", "content": [sent, {"type": "text", "text": "w5"}]},
        {"role": "assistant", "content": "w6"},
        {"role": "user", "content": "w7"},
        {"role": "assistant", "content": "w8"},
    ]
    (chatting.parent / "train.jsonl").write_text(json.dumps({"messages": talk}))
    kept = {"messages": [{"role": "user", "content": "w5"}, *talk[1:]]}
    (chatting.parent / "texts.jsonl").write_text(json.dumps(kept))
    recipe, model = read_recipe(chatting), safe_framework.build(chatting)
    assert not preview(recipe).errors
    data = RecipeData(recipe)
    first, second = data.examples("train", model.encoders)
    assert (first.answer, second.answer) == ("w6", "w8")
    monkeypatch.chdir(chatting.parent)
    heard = model.processor.apply_chat_template(talk[:3], add_generation_prompt=True)
    batch = model.processor(text=second.prompt, audio=[second.samples["audio"]])
    assert batch.keys() == heard.keys()
    assert all(torch.equal(batch[key], heard[key]) for key in heard)
    (text,) = data.texts("retention")
    assert model.tokenizer(text.text)["input_ids"] == asked(
        model.tokenizer, *((one["role"], one["content"]) for one in kept["messages"]), end=False
    )
    before = data.digest("train")
    soundfile.write(chatting.parent / "a.wav", np.zeros(1600, np.float32) + 0.2, 16_000)
    assert RecipeData(recipe).digest("train") != before
