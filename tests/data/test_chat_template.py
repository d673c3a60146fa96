"""What is asked of a base's chat template: its tokens, its turns, its day, and what it refuses."""

from __future__ import annotations

import warnings
from datetime import date, datetime
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from safe_framework.config.schema import DataSpec
from safe_framework.data.chat_template import ChatTemplate, DatePinned, pinned
from safe_framework.data.prompts import recipe_chat
from safe_framework.errors import DataError
from tests.support.chats import ENDS, TEMPLATES, speaking

NAMES = sorted(TEMPLATES)
DAY = date(2026, 11, 30)


def user(text: str) -> dict[str, str]:
    """What a user says."""
    return {"role": "user", "content": text}


def own(words: Any, talk: list[dict[str, str]], **options: Any) -> list[int]:
    """The ids that the base's own method makes."""
    ids: list[int] = words.apply_chat_template(talk, return_dict=True, **options)["input_ids"]
    return ids


@pytest.mark.parametrize("question", ["what is this", " what is this", "what\n", "\tis  this \n"])
@pytest.mark.parametrize("name", NAMES)
def test_a_question_makes_the_tokens_of_its_chat(name: str, question: str) -> None:
    """Law: white space and all, also where a template trims it."""
    words = speaking(name)
    text = ChatTemplate(words, day=DAY).question(question)
    told = pinned(words, DAY)
    assert words(text)["input_ids"] == own(told, [user(question)], add_generation_prompt=True)


@pytest.mark.parametrize("answer", ["high", "high and low", " high\n"])
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_ends_as_the_template_ends_a_turn(name: str, answer: str) -> None:
    """Law: prompt and answer together are what the template makes of both, up to the turn's end."""
    words = speaking(name)
    options = {"enable_thinking": False} if name == "qwen" else {}
    chat = ChatTemplate(words, options=options, day=DAY)
    found = words(chat.question("what is this"))["input_ids"] + chat.answer_ids(answer)
    talk = [user("what is this"), {"role": "assistant", "content": answer}]
    whole = own(pinned(words, DAY), talk, **options)
    assert found == whole[: len(found)]
    assert words.convert_ids_to_tokens(found[-1]) == ENDS[name]
    assert chat.stop == (found[-1],)
    assert len(whole) == len(found)  # but for white space, which these words do not tell


@pytest.mark.parametrize("name", NAMES)
def test_where_the_assistant_is_to_speak(name: str) -> None:
    """Law: a prompt that was rendered by anybody is known for a chat, and another text is not."""
    words = speaking(name)
    rendered = words.apply_chat_template(
        [user("what is this")], add_generation_prompt=True, tokenize=False
    )
    chat = ChatTemplate(words)
    assert chat.opens(rendered)
    assert not any(map(chat.opens, ["what is this", "", "begin", rendered + "high"]))


def test_thinking_is_an_option_of_the_recipe() -> None:
    """Law: `template_options` reach the template; an answer follows where thinking was ended."""
    data = DataSpec(train="x", chat=True, template_options={"enable_thinking": False})
    words = speaking("qwen")
    chat = recipe_chat(data, words)
    assert chat is not None
    ids = words(chat.question("what is this"))["input_ids"]
    talk = [user("what is this")]
    assert ids == own(words, talk, add_generation_prompt=True, enable_thinking=False)
    assert ids != own(words, talk, add_generation_prompt=True)
    with pytest.raises(DataError, match=r"not read the option `enable_thinking`.*\nhint: leave"):
        recipe_chat(data, speaking("chatml"))


FORMATS = ("%Y-%m-%d", "%d %b %Y", "%A, %-d %B %y at %H:%M", "100%% of %j", "no day")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("start", ["", "\n", "  ", "begin "])
def test_a_pinned_day_is_written_as_any_other(
    form: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the template writes the day in its own form, and nothing else of it changes."""

    class Noon(datetime):
        """The day that is pinned, at noon."""

        @classmethod
        def now(cls, tz: Any = None) -> Noon:
            return cls(2026, 11, 30, 12)

    words = speaking("words")
    day = f"{start}{{% if true %}}\n  {{{{ strftime_now('{form}') }}}}\n  {{% endif %}} day "
    words.chat_template = day + TEMPLATES["words"]
    monkeypatch.setattr(chat_template_utils, "datetime", Noon)
    talk = [user("what")]
    expected = words.apply_chat_template(talk, tokenize=False)
    monkeypatch.undo()
    assert pinned(words, DAY).apply_chat_template(talk, tokenize=False) == expected
    assert words.chat_template == day + TEMPLATES["words"]


def test_a_day_is_pinned_and_told() -> None:
    """Law: a recipe that names no day is told which one its chats say; one that does is not."""
    with pytest.warns(
        DatePinned, match=r'chats say 2024-07-26.*\nhint: write `date = "2024-07-26"'
    ):
        first = recipe_chat(DataSpec(train="x", chat=True), speaking("llama"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = recipe_chat(DataSpec(train="x", chat=True, date="2026-11-30"), speaking("llama"))
        plain = recipe_chat(DataSpec(train="x", chat=True), speaking("chatml"))
    assert first is not None
    assert named is not None
    assert plain is not None
    assert "26 Jul 2024" in first.question("what")
    assert "30 Nov 2026" in named.question("what")


def test_a_refused_system_is_said_so() -> None:
    """Law: a template that takes no system message is named, with where its words go instead."""
    chat = recipe_chat(DataSpec(train="x", chat=True, system="the cat sat"), speaking("gemma"))
    assert chat is not None
    with pytest.raises(DataError, match=r"takes no system message: System.*\nhint: .*`prompt`"):
        chat.question("what")


def test_other_refusals_are_said_so() -> None:
    """Law: whatever a template refuses is an error of the framework's that says why."""
    with pytest.raises(DataError, match=r"takes no such messages: .*must alternate\nhint: most"):
        ChatTemplate(speaking("gemma")).before_answer([user("what"), user("is")])
