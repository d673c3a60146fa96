"""The chat in which a recipe asks, and the places of pictures in a base's chats."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from safe_framework.data.chat_template import (
    DATE,
    QUESTION,
    ChatTemplate,
    chat_renderer,
    warn_of_date,
)
from safe_framework.errors import DataError

if TYPE_CHECKING:
    from safe_framework.config.schema import DataSpec


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

    Args:
        data: whether there is a chat, what its system says, and the template's options and date.
        processor: the base's processor or tokenizer; None for none.

    Raises:
        DataError: the base has no chat template.

    Warns:
        DatePinned: the template writes a date, and the recipe does not say which.
    """
    if data is None or not data.chat or processor is None:
        return None
    if chat_renderer(processor) is None:
        raise DataError(
            "the base has no chat template, which `chat = true` in [data] asks for",
            hint="leave it out, and write the form of a question into `prompt`",
        )
    if data.date is None:
        warn_of_date(processor)
    day = DATE if data.date is None else date.fromisoformat(data.date)
    return ChatTemplate(processor, system=data.system, options=data.template_options, day=day)


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
