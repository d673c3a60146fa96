"""A base's chat template: the text that it makes of messages, and how it ends a turn."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any

import attrs

from safe_framework.errors import DataError, SafeError
from safe_framework.pretrained.base_processor import text_tokenizer
from safe_framework.utils.suggest import nearest

Message = Mapping[str, Any]

QUESTION, ANSWER = "{question}", "{answer}"
_IN_PARTS = [{"type": "text", "text": QUESTION}]
DATE = date(2024, 7, 26)
"""What day a template that asks for it is told in a recipe that says none: Llama 3's own choice."""
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
_DIRECTIVES, _PERCENT = "aAwdbBmyYHIpMSfjUWcxXGuV", "\ue000"  # those of every platform
_KEPT = 4096  # rendered questions: data sets ask few different ones


class DatePinned(UserWarning):
    """A base's chat template writes today's date, and a recipe does not say which day that is."""


@attrs.frozen
class Turn:
    """How a template writes what the assistant says.

    Attributes:
        lead: white space that it puts before the first word.
        trims: whether white space around the words is left out.
        end: what stands behind the last word, up to the word that ends the turn; may be empty.
        stop: the ids of that word; none where a turn ends as a text does.
    """

    lead: str = ""
    trims: bool = False
    end: str = ""
    stop: tuple[int, ...] = ()


class ChatTemplate:
    """What a base makes of messages.

    Args:
        processor: the base's processor or tokenizer; one of them has a template.
        system: what the system says before a question; None leaves that to the template.
        options: of the template, such as ``enable_thinking``.
        day: what day the template is told that it is; None tells it the truth.

    Attributes:
        renderer: whichever of processor and tokenizer has the template, with the day pinned.
        options: as given.
    """

    def __init__(
        self,
        processor: Any,
        *,
        system: str | None = None,
        options: Mapping[str, Any] = NO_OPTIONS,
        day: date | None = None,
    ) -> None:
        self.renderer = pinned(chat_renderer(processor), day)
        self.tokenizer = text_tokenizer(processor)
        self.system, self.options = system, dict(options)
        self.check_options(self.options)
        self._asked: dict[tuple[str, int], str] = {}

    @classmethod
    def of(cls, processor: Any) -> ChatTemplate | None:
        """A base's own template as it is; None where it has none."""
        return None if chat_renderer(processor) is None else cls(processor)

    def check_options(self, names: Collection[str], also: Collection[str] = ()) -> None:
        """Refuse options that the template would pass over without a word.

        Args:
            names: of options.
            also: names that could have been meant.

        Raises:
            DataError: it does not read one of them.
        """
        text = str(self.renderer.chat_template)
        for name in names:
            if not re.search(rf"\b{re.escape(name)}\b", text):
                near = nearest(name, also)
                raise DataError(
                    f"the base's chat template does not read the option `{name}`",
                    hint=near or "leave it out of `template_options`, or correct its name",
                )

    # Text

    def question(self, text: str, images: int = 0) -> str:
        """A question as a user's message, up to where the assistant speaks.

        What comes out makes the very tokens that the template makes, wherever it is put into a
        batch.

        Args:
            text: the user's words.
            images: pictures that the message begins with.

        Raises:
            DataError: the template refuses the messages, or no text makes its tokens.
        """
        if (found := self._asked.get((text, images))) is not None:
            return found
        parts = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        messages: list[Message] = [{"role": "user", "content": parts if images else text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        if len(self._asked) >= _KEPT:
            self._asked.clear()
        self._asked[text, images] = made = self.before_answer(messages)
        return made

    def before_answer(self, messages: Sequence[Message]) -> str:
        """Messages up to where the assistant speaks, as a text that makes the template's tokens.

        Raises:
            DataError: as ``question``.
        """
        return self._whole(self.render(messages, add_generation_prompt=True))

    def text(self, messages: Sequence[Message]) -> str:
        """Messages alone, as a text that makes the template's tokens.

        Raises:
            DataError: as ``question``.
        """
        return self._whole(self.render(messages))

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """What the template writes.

        Args:
            messages: whose contents are texts or parts.
            **options: of the template, besides its own.

        Raises:
            DataError: the template refuses the messages.
        """
        try:
            return self._render(messages, options)
        except DataError:
            raise
        except Exception as error:  # a template raises what its author chose
            raise self.refusal(messages, error) from error

    def _render(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        shaped = [self._shaped(message) for message in messages]
        given = {**self.options, **options}
        text: str = self.renderer.apply_chat_template(shaped, tokenize=False, **given)
        return text

    def _shaped(self, message: Message) -> Message:
        """A message whose content is parts, or a text, as the template takes it."""
        content = message.get("content")
        if self.takes_parts:
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            return {**message, "content": parts}
        if not isinstance(content, (list, tuple)):
            return message
        if any(part["type"] == "image" for part in content):
            raise _takes_no_pictures("it takes no parts of a message")
        return {**message, "content": "".join(part["text"] for part in content)}

    @cached_property
    def takes_parts(self) -> bool:
        """Whether a message's content is a list of parts: a processor's template takes such."""
        if not hasattr(self.renderer, "tokenizer"):
            return self.passes_texts_over
        return str(_IN_PARTS) not in (self._rendered_or_nothing(_IN_PARTS) or str(_IN_PARTS))

    @cached_property
    def passes_texts_over(self) -> bool:
        """Whether a message's text is only written where it is a part, as some templates do."""
        if QUESTION in self._rendered_or_nothing(QUESTION):
            return False
        return QUESTION in self._rendered_or_nothing(_IN_PARTS).replace(str(_IN_PARTS), "")

    def _rendered_or_nothing(self, content: Any) -> str:
        """What the template makes of a user's message; nothing if it refuses it."""
        talk, options = [{"role": "user", "content": content}], {"add_generation_prompt": True}
        try:
            text: str = self.renderer.apply_chat_template(
                talk, tokenize=False, **self.options, **options
            )
        except Exception:  # a template raises what its author chose
            return ""
        return text

    def refusal(self, messages: Sequence[Message], error: Exception) -> DataError:
        """Why the template takes no such messages, and what to do."""
        contents = [m.get("content") for m in messages]
        parts = [part for one in contents if isinstance(one, (list, tuple)) for part in one]
        if any(part.get("type") == "image" for part in parts):
            return _takes_no_pictures(str(error))
        others = [message for message in messages if message.get("role") != "system"]
        if len(others) < len(messages) and self._takes(others):
            return DataError(
                f"the base's chat template takes no system message: {error}",
                hint="put its words into the first user's message (into `prompt`, if it is "
                "`system` in [data])",
            )
        return DataError(
            f"the base's chat template takes no such messages: {error}",
            hint="most want a user and an assistant in turn, beginning with the user",
        )

    def _takes(self, messages: Sequence[Message]) -> bool:
        try:
            self._render(messages, {"add_generation_prompt": True})
        except Exception:  # a template raises what its author chose
            return False
        return True

    def _whole(self, text: str) -> str:
        """The rendered text, without its start token where a tokenizer adds that itself."""
        started = self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token)
        if hasattr(self.renderer, "tokenizer") and not started:
            return text  # a processor puts special tokens around a chat that has no start token
        return _without_start_token(self.tokenizer, text)

    # Turns

    @cached_property
    def opening(self) -> str:
        """What stands between a user's words and the assistant's."""
        asked = self.render([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
        return asked.partition(QUESTION)[2]

    def opens(self, text: str) -> bool:
        """Whether a text ends where the assistant is to speak."""
        try:
            return bool(self.opening.strip()) and text.endswith(self.opening)
        except SafeError:  # it takes no lone question, so that nothing is known of its turns
            return False

    @cached_property
    def turn(self) -> Turn:
        """How the template writes the assistant's words and ends its turn."""
        asked = {"role": "user", "content": QUESTION}
        try:
            told = self.render([asked, {"role": "assistant", "content": ANSWER}])
            loose = self.render([asked, {"role": "assistant", "content": f"\n {ANSWER} \n"}])
            before = self.render([asked], add_generation_prompt=True)
        except SafeError:
            return Turn()
        if ANSWER not in told:
            return Turn()
        end = self._end(told.partition(ANSWER)[2])
        lead = told.removeprefix(before).partition(ANSWER)[0] if told.startswith(before) else ""
        return Turn(
            lead="" if lead.strip() else lead,
            trims=f"\n {ANSWER} \n" not in loose,
            end=end,
            stop=tuple(self._ids(end.strip())),
        )

    def answer_ids(self, answer: str) -> list[int]:
        """The ids of an answer behind the text that opens it, with the end of its turn.

        There are none where the answer has no tokens.
        """
        words = answer.strip() if self.turn.trims else answer
        alone = self._ids(words)
        if not alone:
            return []
        end = self.turn.end or self.tokenizer.eos_token or ""
        opening = self._ids(self.opening)
        whole = self._ids(f"{self.opening}{self.turn.lead}{words}{end}")
        if whole[: len(opening)] == opening and whole[-len(self.stop) :] == list(self.stop):
            return whole[len(opening) :]
        return [*alone, *self.stop]  # the template's words and the answer's make tokens together

    @property
    def stop(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return self.turn.stop or (self.tokenizer.eos_token_id,)

    def _end(self, after: str) -> str:
        """What of the text behind an answer belongs to its turn."""
        words = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
        found = [(after.find(word), -len(word)) for word in words if word.strip() and word in after]
        if not found:
            return after.rstrip()
        start, length = min(found)
        return after[: start - length]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(ids)


def chat_renderer(processor: Any) -> Any:
    """What of a base has a chat template: its processor, else its tokenizer; None for neither."""
    both = (processor, text_tokenizer(processor))
    return next((one for one in both if getattr(one, "chat_template", None) is not None), None)


def writes_date(processor: Any) -> bool:
    """Whether a base's chat template writes today's date."""
    return "strftime_now" in str(getattr(chat_renderer(processor), "chat_template", ""))


def warn_of_date(processor: Any) -> None:
    """Say which day a template is told, where it asks and a recipe does not say.

    Warns:
        DatePinned: it asks.
    """
    if writes_date(processor):
        warnings.warn(
            f"the base's chat template writes today's date: the recipe's chats say {DATE}, in "
            "training and afterwards, so that a prompt is the same every day\n"
            f'hint: write `date = "{DATE}"`, or another day, into [data]',
            DatePinned,
            stacklevel=3,
        )


def pinned(renderer: Any, day: date | None) -> Any:
    """A processor or tokenizer whose template is told this day; as it is for None.

    The copy shares all but the template, which is given a ``strftime_now`` of its own.
    """
    if day is None or not writes_date(renderer):
        return renderer
    found, own = copy.copy(renderer), renderer.chat_template
    if isinstance(own, dict):
        found.chat_template = {name: _clock(day) + text for name, text in own.items()}
    else:
        found.chat_template = _clock(day) + own
    return found


def _clock(day: date) -> str:
    """A macro of jinja that writes a day by any of the directives of ``strftime``.

    A line of its own, which jinja cuts off, so that the template begins as it did.
    """
    at, steps = datetime(day.year, day.month, day.day, 12), f"format | replace('%%', '{_PERCENT}')"
    for letter in _DIRECTIVES:
        shown = at.strftime(f"%{letter}")
        steps += (
            f" | replace('%-{letter}', '{shown.lstrip('0')}') | replace('%{letter}', '{shown}')"
        )
    steps += f" | replace('{_PERCENT}', '%')"
    return f"{{% macro strftime_now(format) %}}{{{{ {steps} }}}}{{% endmacro %}}\n"


def _takes_no_pictures(why: str) -> DataError:
    return DataError(
        f"the base's chat template takes no message with pictures: {why}",
        hint="leave out `chat = true` (or `system`) in [data], or the pictures",
    )


def _without_start_token(tokenizer: Any, text: str) -> str:
    wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
    for candidate in (text, text.removeprefix(tokenizer.bos_token or "")):
        if tokenizer(candidate)["input_ids"] == wanted:
            return candidate
    raise DataError(
        "the base's tokenizer adds words to a text that its chat template has not",
        hint="leave out `chat = true` in [data], and write the form of a question into `prompt`",
    )
