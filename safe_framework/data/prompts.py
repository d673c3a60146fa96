"""The text around a question: a recipe's prompt, in the base's own chat template if it says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safe_framework.errors import DataError
from safe_framework.pretrained.base_processor import text_tokenizer

if TYPE_CHECKING:
    from safe_framework.config.schema import DataSpec, Recipe

QUESTION = "{question}"


def prompt_template(recipe: Recipe | None, processor: Any) -> str:
    """The text around ``{question}`` in which a recipe's data asks; the question alone by default.

    Args:
        recipe: with ``[data]`` or without.
        processor: the base's processor or tokenizer.

    Raises:
        DataError: as :func:`render_prompt`.
    """
    data = recipe.data if recipe is not None else None
    return QUESTION if data is None else render_prompt(data, data.prompt, processor)


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


def render_prompt(data: DataSpec, prompt: str, processor: Any, images: int = 0) -> str:
    """A prompt as it is or, with ``chat = true``, as a user's message before the answer to it.

    What comes out makes the very tokens that the base's chat template makes, wherever it is put
    into a batch.

    Args:
        data: whether there is a chat, and what its system says.
        prompt: with ``{question}`` or without.
        processor: the base's processor or tokenizer; None asks without a template.
        images: pictures that the user's message begins with, in a chat.

    Raises:
        DataError: the base has no chat template, or one whose tokens no text makes, or which
            takes no such message.
    """
    if not data.chat or processor is None:
        return prompt
    renderer = chat_renderer(processor)
    if renderer is None:
        raise DataError(
            "the base has no chat template, which `chat = true` in [data] asks for",
            hint="leave it out, and write the form of a question into `prompt`",
        )
    text, tokenizer = _rendered(renderer, data.system, prompt, images), text_tokenizer(processor)
    started = tokenizer.bos_token and text.startswith(tokenizer.bos_token)
    if renderer is not tokenizer and not started:
        return text  # a processor puts special tokens around a chat that has no start token
    return _without_start_token(tokenizer, text)


def chat_opening(data: DataSpec, processor: Any, images: int = 0) -> str:
    """What :func:`render_prompt` puts before a user's first word, pictures' places included.

    Raises:
        DataError: as :func:`render_prompt`.
    """
    return render_prompt(data, QUESTION, processor, images).partition(QUESTION)[0]


def picture_places(processor: Any, images: int) -> str | None:
    """What the base's chat template writes for a message's pictures; None if none is to be seen.

    Args:
        processor: the base's.
        images: how many there are.
    """
    renderer = chat_renderer(processor)
    if renderer is None:
        return None
    try:
        plain, seeing = (_rendered(renderer, None, QUESTION, count) for count in (0, images))
    except DataError:
        return None
    before, (opening, _, rest) = plain.partition(QUESTION)[0], seeing.partition(QUESTION)
    same = opening.startswith(before) and rest == plain.partition(QUESTION)[2]
    return opening.removeprefix(before) if same else None


def chat_renderer(processor: Any) -> Any:
    """What of a base has a chat template: its processor, else its tokenizer; None for neither."""
    both = (processor, text_tokenizer(processor))
    return next((one for one in both if getattr(one, "chat_template", None) is not None), None)


def _rendered(renderer: Any, system: str | None, prompt: str, images: int) -> str:
    """The chat before its answer, whose messages are parts where the template takes such."""
    messages = [("system", system)] if system is not None else []
    texts: list[tuple[str, str | None]] = [*messages, ("user", prompt)]
    pictures = [{"type": "image"}] * images
    parts = [
        {
            "role": role,
            "content": [*(pictures if role == "user" else ()), {"type": "text", "text": text}],
        }
        for role, text in texts
    ]
    plain = [{"role": role, "content": text} for role, text in texts]
    if hasattr(renderer, "tokenizer"):  # a processor, whose template takes parts
        found = _applied(renderer, parts, images)
        if not any(str(message["content"]) in found for message in parts):
            return found
        if images:
            raise _takes_no_pictures("it writes them as they are")
    elif images:
        raise _takes_no_pictures("it is its tokenizer's")
    return _applied(renderer, plain, 0)


def _applied(renderer: Any, talk: Sequence[Any], images: int) -> str:
    try:
        text: str = renderer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises what its author chose
        if not images:
            raise
        raise _takes_no_pictures(str(error)) from error
    return text


def _takes_no_pictures(why: str) -> DataError:
    return DataError(
        f"the base's chat template takes no message with pictures: {why}",
        hint="leave out `chat = true` (or `system`) in [data], or the pictures",
    )


def _without_start_token(tokenizer: Any, text: str) -> str:
    """The rendered text, without its start token where a tokenizer adds that itself."""
    wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
    for candidate in (text, text.removeprefix(tokenizer.bos_token or "")):
        if tokenizer(candidate)["input_ids"] == wanted:
            return candidate
    raise DataError(
        "the base's tokenizer adds words to a text that its chat template has not",
        hint="leave out `chat = true` in [data], and write the form of a question into `prompt`",
    )
