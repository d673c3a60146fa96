"""The text around a question: a recipe's prompt, in the base's own chat template if it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safe_framework.errors import DataError

if TYPE_CHECKING:
    from safe_framework.config.schema import DataSpec, Recipe

QUESTION = "{question}"


def prompt_template(recipe: Recipe | None, tokenizer: Any) -> str:
    """The text around ``{question}`` in which a recipe's data asks; the question alone by default.

    Args:
        recipe: with ``[data]`` or without.
        tokenizer: the base's tokenizer or processor.

    Raises:
        DataError: as :func:`render_prompt`.
    """
    data = recipe.data if recipe is not None else None
    return QUESTION if data is None else render_prompt(data, data.prompt, tokenizer)


def render_prompt(data: DataSpec, prompt: str, tokenizer: Any) -> str:
    """A prompt as it is or, with ``chat = true``, as a user's message before the answer to it.

    What comes out makes the very tokens that the base's chat template makes, wherever it is put
    into a batch.

    Args:
        data: whether there is a chat, and what its system says.
        prompt: with ``{question}`` or without.
        tokenizer: the base's tokenizer or processor; None asks without a template.

    Raises:
        DataError: the base has no chat template, or one whose tokens no text makes.
    """
    if not data.chat or tokenizer is None:
        return prompt
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError(
            "the base has no chat template, which `chat = true` in [data] asks for",
            hint="leave it out, and write the form of a question into `prompt`",
        )
    messages = [("system", data.system), ("user", prompt)]
    parted = hasattr(tokenizer, "tokenizer")  # a processor, whose template takes parts
    talk = [
        {"role": role, "content": [{"type": "text", "text": text}] if parted else text}
        for role, text in messages
        if text is not None
    ]
    text: str = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    return _without_start_token(getattr(tokenizer, "tokenizer", tokenizer), text)


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
