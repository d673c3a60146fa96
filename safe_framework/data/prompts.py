"""The chat in which a recipe asks, and the places of pictures in a base's chats."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Any

from safe_framework.data.chat_template import (
    DATE,
    QUESTION,
    ChatTemplate,
    chat_renderer,
    warn_of_date,
)
from safe_framework.errors import DataError, SafeError

if TYPE_CHECKING:
    from safe_framework.config.schema import DataSpec, MixSpec


EARLIER = (
    {"role": "user", "content": "Hello! Can you help me with something?"},
    {"role": "assistant", "content": "Of course. What would you like to know?"},
)
"""The turn before a question, where it is asked in a chat that goes on."""

SYSTEM = "You are a careful assistant. Answer briefly, and only what you are asked."
"""What the system says where a question is asked under one that training had not."""


def filled(template: str, question: str, present: Mapping[str, int], place: str) -> str:
    """A prompt's template with a question in it, and with the places of the row's samples.

    Args:
        template: around ``{question}``.
        question: that the row is asked.
        present: how many samples it has, by modality.
        place: of the row, for messages.

    Raises:
        DataError: the text names more or fewer places of a modality than the row has samples.
    """
    prompt = with_places(template, question, present).replace(QUESTION, question)
    for name, count in present.items():
        places = prompt.count(f"<{name}>")
        if places not in (0, count):
            raise DataError(
                f"{place}: its text names {places} place{'s' * (places > 1)} `<{name}>`, and it "
                f"has {count} sample{'s' * (count > 1)} of `{name}`",
                hint=f"write `<{name}>` once for each sample, or nowhere",
            )
    return prompt


def with_places(template: str, question: str, present: Mapping[str, int]) -> str:
    """A prompt's template with the places of the samples that a question has.

    Where the question itself says ``<NAME>``, the template's does not count; where it does not and
    the template has one place, all samples stand there, in order.

    Args:
        template: around ``{question}``.
        question: that will be put into it.
        present: how many samples there are, by modality.

    >>> with_places("<audio>{question}", "Which is louder?", {"audio": 2})
    '<audio><audio>{question}'
    >>> with_places("<audio>{question}", "Is <audio> louder than <audio>?", {"audio": 2})
    '{question}'
    """
    for name, count in present.items():
        word = f"<{name}>"
        if word in question:
            template = template.replace(word, "")
        elif template.count(word) == 1:
            template = template.replace(word, word * count)
    return template


def recipe_chat(data: DataSpec | None, processor: Any) -> ChatTemplate | None:
    """The base's chat template as a recipe uses it; None where it asks in none.

    Where the recipe does not say, a base without one that can be used is asked without.

    Args:
        data: whether there is a chat, what its system says, and the template's options and date.
        processor: the base's processor or tokenizer; None for none.

    Raises:
        DataError: the recipe wants a chat, and the base has no chat template.

    Warns:
        DatePinned: the template writes a date, and the recipe does not say which.
    """
    if data is None or processor is None or not may_chat(data):
        return None
    if chat_renderer(processor) is None:
        if not _wants_chat(data):
            return None
        raise DataError(
            "the base has no chat template, which `chat = true` in [data] asks for",
            hint="leave it out, and write the form of a question into `prompt`",
        )
    day = DATE if data.date is None else date.fromisoformat(data.date)
    chat = ChatTemplate(processor, system=data.system, options=data.template_options, day=day)
    if not _wants_chat(data):
        try:
            chat.question(QUESTION)
        except SafeError:  # no text makes its tokens, or it takes no lone question
            return None
    if data.date is None:
        warn_of_date(processor)
    return chat


def may_chat(data: DataSpec, one: MixSpec | None = None) -> bool:
    """Whether questions are asked in the base's chat template, if it has one.

    Where the recipe does not say, they are if the prompt is left as it is, and if something is
    asked, and answered behind it.

    Args:
        data: of the recipe.
        one: the dataset that is asked about; all of them if None.
    """
    if data.chat is not None or _wants_chat(data):
        return data.chat is not False
    asked = [one] if one is not None else list(data.datasets().values())
    return data.prompt == QUESTION and any(_asks_plainly(each) for each in asked)


def _wants_chat(data: DataSpec) -> bool:
    """Whether a recipe says that there is a chat, by itself or by what is for chats alone."""
    about = (data.system, data.date, data.template_options or None)
    return bool(data.chat) or any(one is not None for one in about)


def _asks_plainly(one: MixSpec) -> bool:
    """Whether a dataset asks something, by itself, and has it answered."""
    asks = one.task == "question_answering" or one.question is not None
    return asks and one.prompt == QUESTION and one.read_at == "answer"


def chats_that_go_on(chat: ChatTemplate, prompt: str) -> dict[str, str]:
    """The text around ``{question}`` in other chats than those of training, by what is different.

    Args:
        chat: the base's, as training uses it.
        prompt: the user's message, around the question.
    """
    asked = {"role": "user", "content": prompt}
    own = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    ways = {
        "after another turn": [*own, *EARLIER, asked],
        "with a system message": [{"role": "system", "content": SYSTEM}, asked],
    }
    found = {}
    for way, messages in ways.items():
        with suppress(SafeError):  # a template may take no system message
            text = chat.before_answer(messages)
            if all(str(message["content"]) in text for message in messages):
                found[way] = text
    return found


def picture_places(processor: Any, images: int) -> str | None:
    """What the base's chat template writes for a message's pictures; None if none is to be seen.

    Args:
        processor: the base's.
        images: how many there are.
    """
    chat, text = ChatTemplate.of(processor), {"type": "text", "text": QUESTION}
    if chat is None:
        return None
    try:
        plain, seeing = (
            chat.render([{"role": "user", "content": parts}], add_generation_prompt=True)
            for parts in ([text], [*[{"type": "image"}] * images, text])
        )
    except DataError:
        return None
    before, (opening, _, rest) = plain.partition(QUESTION)[0], seeing.partition(QUESTION)
    same = opening.startswith(before) and rest == plain.partition(QUESTION)[2]
    return opening.removeprefix(before) if same else None
