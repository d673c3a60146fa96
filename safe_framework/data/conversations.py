"""Rows that hold a conversation: one example for each turn of the assistant's.

A turn is learned as it will be asked: before it stands what was said and sent until then, and
nothing that comes later. So what is sent in a later turn cannot be heard in an earlier one, and
the sense acts on the answer to the last question, whatever came before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs

from safe_framework.data.chat_template import ChatTemplate, Message
from safe_framework.data.pictures import FIELDS as PICTURES
from safe_framework.data.readers import Row
from safe_framework.errors import DataError

MESSAGES = "messages"
IMAGE = "image"
ASSISTANT = "assistant"
_INSTEAD = ("question", "answer", "answers", "text", "caption", "label")
_TURN = ", message "  # between the place of a row and a number
_KEYS = ("path", "url")  # of a part, besides its own type


def has_messages(row: Row) -> bool:
    """Whether a row is a conversation."""
    return row.values.get(MESSAGES) is not None


def turns_of(row: Row, modalities: Collection[str]) -> list[Row]:
    """A row as it is or, of a conversation, one for each turn of the assistant's.

    Such a row has the ``messages`` before the turn, whose parts hold no more than the places of
    samples and pictures; these under the names of their fields, in order; and the ``answer``.

    Args:
        row: whose fields have the names that they have here.
        modalities: whose samples may be parts.

    Raises:
        DataError: the conversation cannot be read; the message names the row and the turn.
    """
    if not has_messages(row):
        return [row]
    read = _Conversation(row, modalities)
    answers = [at for at, one in enumerate(read.messages) if one["role"] == ASSISTANT]
    if not answers:
        raise DataError(
            f"{row.place}: the conversation has no turn of the assistant's, and nothing to learn",
            hint='end it with a message whose `role` is "assistant"',
        )
    return list(map(read.before, answers))


def whole_of(row: Row, modalities: Collection[str]) -> list[Row]:
    """A row as it is or, of a conversation, one with all its ``messages`` and their pictures.

    The arguments are those of ``turns_of``; a text of the base's own domain holds no samples.

    Raises:
        DataError: the conversation cannot be read, or has a sample.
    """
    if not has_messages(row):
        return [row]
    found = last_of(row, modalities)
    for number, message in enumerate(found.values[MESSAGES], 1):
        for part in message["content"]:
            if part["type"] in modalities:
                raise DataError(
                    f"{row.place}, message {number}: a part is a sample of `{part['type']}`, and a "
                    "conversation that is to stay the base's has none",
                    hint="leave the part out, or put the row into `train`",
                )
    return [found]


class Talk:
    """Renders messages, whose parts are texts, pictures and the places of samples.

    Args:
        chat: gives the base's chat template, or None where it has none; asked once there is a
            conversation.
        marked: the modalities whose samples have a place in the text.
        system: what the system says where a conversation does not; None for nothing.
    """

    def __init__(
        self,
        chat: Callable[[], ChatTemplate | None],
        marked: Collection[str],
        system: str | None = None,
    ) -> None:
        self._given, self.marked, self.system = chat, marked, system

    def before(self, row: Row) -> str:
        """A row's messages, up to where the assistant speaks.

        Raises:
            DataError: the base has no chat template, or it takes no such messages.
        """
        return self._rendered(row, lambda chat: chat.before_answer)

    def whole(self, row: Row) -> str:
        """A row's messages.

        Raises:
            DataError: as ``before``.
        """
        return self._rendered(row, lambda chat: chat.text)

    def _rendered(
        self, row: Row, way: Callable[[ChatTemplate], Callable[[Sequence[Message]], str]]
    ) -> str:
        chat, messages = self._given(), row.values[MESSAGES]
        if chat is None:
            raise DataError(
                f"{row.place}: the base has no chat template, which `{MESSAGES}` need",
                hint="write such rows with `question` and `answer`, and history in the question",
            )
        shown = [{**one, "content": list(_shown(one["content"], self.marked))} for one in messages]
        texts = list(map(_joined, shown))
        if self.system is not None and (not texts or texts[0]["role"] != "system"):
            texts = [{"role": "system", "content": self.system}, *texts]
        try:
            return way(chat)(texts)
        except DataError as error:
            raise DataError(f"{row.place}: {error.message}", hint=error.hint) from error


def last_of(row: Row, modalities: Collection[str]) -> Row:
    """A row as it is or, of a conversation, with all that its messages hold under its fields.

    The arguments are those of ``turns_of``.

    Raises:
        DataError: the conversation cannot be read.
    """
    if not has_messages(row):
        return row
    read = _Conversation(row, modalities)
    return read.upto(len(read.messages), row.place)


def row_of(place: str) -> str:
    """The place of a row, of that of one of its turns.

    >>> row_of("train.jsonl:3, message 4"), row_of("train.jsonl:5")
    ('train.jsonl:3', 'train.jsonl:5')
    """
    return place.partition(_TURN)[0]


def sent_last(row: Row, modalities: Collection[str]) -> bool:
    """Whether a conversation's last message brings a sample of one of these modalities."""
    return any(part["type"] in modalities for part in row.values[MESSAGES][-1]["content"])


def last_question(messages: Sequence[Message]) -> str:
    """The text of the last message that is not the assistant's."""
    asked = [one for one in messages if one["role"] != ASSISTANT]
    return "".join(p["text"] for p in asked[-1]["content"] if p["type"] == "text") if asked else ""


def _shown(parts: Sequence[Message], marked: Collection[str]) -> Iterator[Message]:
    """The parts that a template is given: a sample is the word of its place, or nothing."""
    for part in parts:
        if part["type"] in ("text", IMAGE):
            yield part
        elif part["type"] in marked:
            yield {"type": "text", "text": f"<{part['type']}>"}


def _joined(message: Message) -> Message:
    """A message whose content is one text, unless it has pictures."""
    parts = message["content"]
    if any(part["type"] == IMAGE for part in parts):
        return message
    return {**message, "content": "".join(part["text"] for part in parts)}


@attrs.frozen
class _Held:
    """A sample or picture of a conversation.

    Attributes:
        at: the message that it is in.
        field: of a row, that holds such.
        value: what is in it.
    """

    at: int
    field: str
    value: Any


class _Conversation:
    """The messages of a row, their parts' values taken out."""

    def __init__(self, row: Row, modalities: Collection[str]) -> None:
        self.row = row
        self.kinds = (*modalities, *([] if IMAGE in modalities else [IMAGE]))
        for field in _INSTEAD:
            if row.values.get(field) is not None:
                raise DataError(
                    f"{row.place}: it has both `{MESSAGES}` and `{field}`",
                    hint=f"put what `{field}` says into a message, or leave it out",
                )
        self.fields = {kind: self._field(kind) for kind in self.kinds}
        self.waiting = {kind: self._values(kind) for kind in self.kinds}
        counts = {kind: len(values) for kind, values in self.waiting.items()}
        self.held, self.messages = list[_Held](), list[Message]()
        for number, message in enumerate(self._listed()):
            self.messages.append(self._message(number, message))
        for kind, values in self.waiting.items():
            if values:
                places = counts[kind] - len(values)
                raise DataError(
                    f"{row.place}: `{self.fields[kind]}` holds {counts[kind]}, and its messages "
                    f"have {places} {'place' if places == 1 else 'places'} for them",
                    hint=f'put a part {{"type": "{kind}"}} where each belongs',
                )

    def before(self, turn: int) -> Row:
        """The row of one turn of the assistant's."""
        place = f"{self.row.place}{_TURN}{turn + 1}"
        answer = "".join(part["text"] for part in self.messages[turn]["content"])
        if not answer.strip():
            raise DataError(f"{place}: the assistant says nothing", hint="leave the turn out")
        found = self.upto(turn, place)
        return attrs.evolve(found, values={**found.values, "answer": answer})

    def upto(self, end: int, place: str) -> Row:
        """The row of the first messages, with all that they hold."""
        taken = {MESSAGES, *self.fields.values()}
        kept = {key: value for key, value in self.row.values.items() if key not in taken}
        held: dict[str, list[Any]] = {}
        for one in self.held:
            if one.at < end:
                held.setdefault(one.field, []).append(one.value)
        single = {field: v[0] if len(v) == 1 else v for field, v in held.items()}
        values = {**kept, **single, MESSAGES: tuple(self.messages[:end])}
        return attrs.evolve(self.row, place=place, values=values)

    def _field(self, kind: str) -> str:
        """The field of a row that holds what parts of this type do."""
        if kind != IMAGE:
            return kind
        held = [field for field in PICTURES if self.row.values.get(field) is not None]
        if len(held) > 1:
            raise DataError(
                f"{self.row.place}: it has both `image` and `images`",
                hint="put all of them into `images`",
            )
        return held[0] if held else "images"

    def _values(self, kind: str) -> list[Any]:
        """What the row's own field holds, for parts that hold nothing themselves."""
        value = self.row.values.get(self.fields[kind])
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = _json(value, self.fields[kind], self.row.place)
        if value is None:
            return []
        return list(value) if isinstance(value, (list, tuple)) else [value]

    def _listed(self) -> list[Any]:
        value = self.row.values[MESSAGES]
        if isinstance(value, str):  # a cell of a table
            value = _json(value, MESSAGES, self.row.place)
        if hasattr(value, "tolist"):  # of NumPy, as pandas and Parquet hold lists
            value = value.tolist()
        if not isinstance(value, (list, tuple)) or not value:
            raise DataError(
                f"{self.row.place}: `{MESSAGES}` must be a list of messages, not {value!r:.80}",
                hint='write [{"role": "user", "content": "..."}, ...]',
            )
        return list(value)

    def _message(self, number: int, message: Any) -> Message:
        place = f"{self.row.place}, message {number + 1}"
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not role:
            raise DataError(
                f"{place}: it is no message with a `role`: {message!r:.80}",
                hint='write {"role": "user", "content": "..."}',
            )
        content = message.get("content")
        content = content.tolist() if hasattr(content, "tolist") else content
        if isinstance(content, str):
            parts = self._worded(content)
        elif isinstance(content, (list, tuple)):
            parts = list(content)
        else:
            raise DataError(
                f"{place}: `content` must be a text or a list of parts, not {content!r:.80}",
                hint='write "..." or [{"type": "text", "text": "..."}]',
            )
        read = [self._part(number, place, role, part) for part in parts]
        own = {key: value for key, value in message.items() if value is not None}
        return {**own, "content": read}

    def _worded(self, text: str) -> list[Message]:
        """A text as parts, cut at the places of what the row's own fields hold."""
        named = [kind for kind, values in self.waiting.items() if values]
        if not named:
            return [{"type": "text", "text": text}]
        cut = re.split(f"<({'|'.join(map(re.escape, named))})>", text)
        return [
            {"type": piece} if number % 2 else {"type": "text", "text": piece}
            for number, piece in enumerate(cut)
            if piece
        ]

    def _part(self, number: int, place: str, role: str, part: Any) -> Message:
        """A part without what it holds, which is noted."""
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return {"type": "text", "text": part["text"]}
        if kind not in self.kinds:
            known = ", ".join(f"`{one}`" for one in ("text", *self.kinds))
            raise DataError(
                f"{place}: a part is of no known type: {part!r:.80}",
                hint=f"types of parts: {known}",
            )
        if role == ASSISTANT:
            raise DataError(
                f"{place}: the assistant says text alone, not `{kind}`",
                hint="put the part into a user's message",
            )
        found = [part[key] for key in (kind, *_KEYS) if part.get(key) is not None]
        if not found and self.waiting[kind]:
            found = [self.waiting[kind].pop(0)]
        if len(found) != 1:
            raise DataError(
                f"{place}: a `{kind}` part holds {len(found)} of them",
                hint=f"give one of `{kind}`, `path` and `url`, or `{self.fields[kind]}` in the row",
            )
        value, rate = found[0], part.get("sampling_rate")
        if rate is not None:
            value = {"array": value, "sampling_rate": rate}
        self.held.append(_Held(number, self.fields[kind], value))
        return {"type": kind}


def _json(text: str, field: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: `{field}` begins as a list and is none: {error}",
            hint="write it as JSON, or as a file of JSON lines",
        ) from error
