"""A conversation with a model: what is sent stays in its turn, and answers show as they grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_framework.core.relevance import Strength
from safe_framework.data.pictures import SUFFIXES
from safe_framework.errors import DataError
from safe_framework.serving.pipeline import SafePipeline
from safe_framework.utils.formatting import size

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel

Message = Mapping[str, Any]

MAX_BYTES = 50 * 10**6
"""Of a file that is given to a page."""


def say(
    model: SafeModel,
    modality: str,
    messages: Sequence[Message],
    text: str,
    files: Sequence[str] = (),
    *,
    gate: Strength | None = None,
    max_new_tokens: int = 128,
) -> Iterator[list[Message]]:
    """Send a message and have it answered: the conversation, again and again as the answer grows.

    Args:
        model: that answers; left as it was.
        modality: whose samples the files are, but for pictures beside sound.
        messages: of the conversation so far; left as they were.
        text: what the user says.
        files: what the user sends: samples, and pictures where the base sees.
        gate: strength of ``modality``, or ``"auto"``; its own if None.
        max_new_tokens: limit of the answer's length.

    Raises:
        DataError: there is nothing to send, a file cannot be used, or the base does not chat.
        SampleError: a file is no sample.
    """
    if model.processor.chat is None:
        raise DataError(
            f"`{type(model.base).__name__}` has no chat template, so that it cannot converse",
            hint="ask it one question at a time",
        )
    if not (text.strip() or files):
        raise DataError("there is no message", hint="write one, or send a file")
    parts: list[Message] = [part_of(model, modality, Path(file)) for file in files]
    if text.strip():
        parts.append({"type": "text", "text": text})
    talk = [*messages, {"role": "user", "content": parts}]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    stream = SafePipeline(model).stream(
        talk, gate=None if gate is None else {modality: gate}, **options
    )
    answer = ""
    for piece in stream:
        answer += piece
        yield [*talk, {"role": "assistant", "content": answer}]
    yield [*talk, {"role": "assistant", "content": answer.strip()}]


def part_of(model: SafeModel, modality: str, file: Path) -> Message:
    """A file as a part of a message: a picture for the base beside sound, else a sample.

    Raises:
        DataError: it is too large.
    """
    check_size(file)
    pictured = file.suffix.lower() in SUFFIXES and "image" not in model.modalities
    sound = model.modality(modality).encoder.sampling_rate is not None
    return {"type": "image" if pictured and sound else modality, "path": str(file)}


def check_size(file: Path) -> None:
    """Refuse a file that is too large for a page.

    Raises:
        DataError: it is.
    """
    if file.is_file() and file.stat().st_size > MAX_BYTES:
        found = size(file.stat().st_size)
        raise DataError(
            f"{file.name}: it has {found}, and the page takes at most {size(MAX_BYTES)}",
            hint="give a shorter or smaller one",
        )


def shown(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation as Gradio's ``Chatbot`` takes it: each file and each text by itself."""
    found: list[dict[str, Any]] = []
    for message in messages:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        for part in parts:
            value = {"path": part["path"]} if "path" in part else part["text"]
            found.append({"role": message["role"], "content": value})
    return found
