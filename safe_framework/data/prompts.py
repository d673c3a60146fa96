"""The text around a question: a recipe's prompt, in the base's own chat template if it says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from safe_framework.errors import DataError
from safe_framework.pretrained.base_processor import text_tokenizer

if TYPE_CHECKING:
    from safe_framework.config.schema import DataSpec, MixSpec, Recipe

QUESTION = "{question}"


EARLIER = (
    ("user", "Hello! Can you help me with something?"),
    ("assistant", "Of course. What would you like to know?"),
)
"""The turn before a question, where it is asked in a chat that goes on."""

SYSTEM = "You are a careful assistant. Answer briefly, and only what you are asked."
"""What the system says where a question is asked under one that training had not."""


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


def may_chat(data: DataSpec, one: MixSpec | None = None) -> bool:
    """Whether questions are asked in the base's chat template, if it has one.

    Where the recipe does not say, they are if the prompt is left as it is, and if something is
    asked, and answered behind it.

    Args:
        data: of the recipe.
        one: the dataset that is asked about; all of them if None.
    """
    if data.chat is None and data.system is None:
        asked = [one] if one is not None else data.datasets().values()
        return any(_asks_plainly(each) for each in asked)
    return data.chat is not False


def uses_chat(data: DataSpec, processor: Any, one: MixSpec | None = None) -> bool:
    """Whether questions are asked in the base's chat template.

    Where the recipe does not say, a base without one that can be used is asked without.

    Args:
        data: of the recipe.
        processor: the base's processor or tokenizer; None asks without a template.
        one: the dataset that is asked about; all of them if None.
    """
    if processor is None or not may_chat(data, one):
        return False
    if data.chat or data.system is not None:
        return True
    try:
        _chat_text(data, QUESTION, processor, 0)
    except Exception:  # a template raises what its author chose
        return False
    return True


def _asks_plainly(one: MixSpec) -> bool:
    """Whether a dataset asks something, by itself, and has it answered."""
    asks = one.task == "question_answering" or one.question is not None
    return asks and one.prompt == QUESTION and one.read_at == "answer"


def render_prompt(
    data: DataSpec, prompt: str, processor: Any, images: int = 0, one: MixSpec | None = None
) -> str:
    """A prompt as it is or, in a chat, as a user's message before the answer to it.

    What comes out makes the very tokens that the base's chat template makes, wherever it is put
    into a batch.

    Args:
        data: whether there is a chat, and what its system says.
        prompt: with ``{question}`` or without.
        processor: the base's processor or tokenizer; None asks without a template.
        images: pictures that the user's message begins with, in a chat.
        one: the dataset that asks so; all of them if None.

    Raises:
        DataError: the base has no chat template, or one whose tokens no text makes, or which
            takes no such message.
    """
    asking = data if one is not None else attrs.evolve(data, prompt=prompt)
    if not uses_chat(asking, processor, one):
        return prompt
    return _chat_text(data, prompt, processor, images)


def chats_that_go_on(data: DataSpec, processor: Any) -> dict[str, str]:
    """The text around ``{question}`` in other chats than those of training, by what is different.

    Args:
        data: of the recipe, whose questions are asked in a chat.
        processor: the base's processor or tokenizer.
    """
    ways: dict[str, tuple[str | None, Sequence[tuple[str, str]]]] = {
        "after another turn": (data.system, EARLIER),
        "with a system message": (SYSTEM, ()),
    }
    found = {}
    for way, (system, earlier) in ways.items():
        try:
            rendered = attrs.evolve(data, system=system)
            text = _chat_text(rendered, data.prompt, processor, 0, earlier)
        except Exception:  # a template raises what its author chose, such as for a system
            continue
        if system is None or way != "with a system message" or system in text:
            found[way] = text
    return found


def _chat_text(
    data: DataSpec,
    prompt: str,
    processor: Any,
    images: int,
    earlier: Sequence[tuple[str, str]] = (),
) -> str:
    """The text of a chat up to its answer, that makes the template's own tokens."""
    renderer = chat_renderer(processor)
    if renderer is None:
        raise DataError(
            "the base has no chat template, which `chat = true` in [data] asks for",
            hint="leave it out, and write the form of a question into `prompt`",
        )
    text = _rendered(renderer, data.system, prompt, images, earlier)
    tokenizer = text_tokenizer(processor)
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


def _rendered(
    renderer: Any,
    system: str | None,
    prompt: str,
    images: int,
    earlier: Sequence[tuple[str, str]] = (),
) -> str:
    """The chat before its answer, whose messages are parts where the template takes such."""
    messages = [("system", system)] if system is not None else []
    texts = [*messages, *earlier, ("user", prompt)]
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
