"""A recording that goes on is asked about: from a pipe, a file, or a page with a microphone."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import numpy as np

from safe_framework.core.relevance import Strength
from safe_framework.data.audio import Waveform, mono
from safe_framework.data.audio_files import decode_blocks
from safe_framework.data.listening import Listener
from safe_framework.data.unread import missing_file
from safe_framework.errors import DataError
from safe_framework.serving.pipeline import SafePipeline

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel

MOST = 30.0
"""Seconds that are heard where nobody says how many, of a sense that takes as many."""

_CHUNK = 0.1  # seconds of a pipe's sound that are read at a time
_AHEAD = 60.0  # seconds of it that wait at most while an answer is made
_SAMPLE = np.dtype("<i2")


def listen(
    model: SafeModel, modality: str, seconds: float | None, sampling_rate: int | None = None
) -> Listener:
    """A listener to the last ``seconds``, or where they are None, to at most ``MOST``."""
    found = model.listen(modality, seconds, sampling_rate=sampling_rate)
    if seconds is None and found.seconds > MOST:
        return model.listen(modality, MOST, sampling_rate=sampling_rate)
    return found


def piped(file: RawIOBase, rate: int) -> Iterator[Waveform]:
    """The chunks of raw sound in a pipe: mono, 16-bit little-endian integers.

    They are read while answers are made, up to a minute ahead.

    Args:
        file: unbuffered, from which a read gives what there is.
        rate: samples a second, in hertz.
    """
    queue: Queue[Waveform | BaseException | None] = Queue(round(_AHEAD / _CHUNK))

    def fill() -> None:
        """Read to the end, whatever it is."""
        try:
            for chunk in _raw_chunks(file, rate):
                queue.put(chunk)
            queue.put(None)
        except BaseException as error:  # raised where it is read
            queue.put(error)

    threading.Thread(target=fill, daemon=True).start()
    while (one := queue.get()) is not None:
        if isinstance(one, BaseException):
            raise one
        yield one


def _raw_chunks(file: RawIOBase, rate: int) -> Iterator[Waveform]:
    rest, size = b"", max(1, round(_CHUNK * rate)) * _SAMPLE.itemsize
    while read := file.read(size):
        whole = rest + read
        end = len(whole) - len(whole) % _SAMPLE.itemsize
        rest = whole[end:]
        if end:
            yield Waveform(np.frombuffer(whole[:end], _SAMPLE), rate)
    if rest:
        warnings.warn(
            "the sound ends within a sample: it may be none of 16-bit integers", stacklevel=2
        )


def filed(path: Path) -> Iterator[Waveform]:
    """The chunks of a sound file, as fast as they are asked for.

    Raises:
        DataError: it cannot be read.
    """
    called = f"the sound file `{path}`"
    if not path.is_file():
        raise missing_file(path, called)
    for channels, rate in decode_blocks(path, called):
        yield Waveform(mono(channels, called), rate)


def answers(
    model: SafeModel,
    modality: str,
    chunks: Iterator[Waveform],
    question: str,
    *,
    seconds: float | None = None,
    every: float | None = None,
    gate: Strength | None = None,
    max_new_tokens: int = 32,
) -> Iterator[tuple[float, str]]:
    """Ask a question again and again while a recording goes on, and at its end.

    Args:
        model: that answers; left as it was.
        modality: that listens.
        chunks: of the recording, all at one rate.
        question: put into the recipe's prompt, about the last ``seconds`` each time.
        seconds: that are heard at most.
        every: seconds of the recording from one question to the next; as many as are heard if None.
        gate: strength of ``modality``, or ``"auto"``; its own if None.
        max_new_tokens: limit of an answer's length.

    Yields:
        At which second of the recording it was asked, and the answer.

    Raises:
        DataError: there is no question, or no sound.
        SafeError: an argument is out of its range.
    """
    if not question.strip():
        raise DataError("there is no question", hint='--question "What do you hear?"')
    if every is not None and not 0 < every < float("inf"):
        raise DataError(f"`every` must be a positive number of seconds, not {every:g}")
    listener, left = None, 0
    for chunk in chunks:
        rate = chunk.sampling_rate
        listener = listener or listen(model, modality, seconds, rate)
        step = max(1, round((every or listener.seconds) * rate))
        values = chunk.values
        while len(values):
            part, values = values[: step - left], values[step - left :]
            listener.add(Waveform(part, rate))
            left = (left + len(part)) % step
            if not left:
                yield listener.total, reply(model, listener, question, gate, max_new_tokens)
    if listener is None:
        raise DataError("nothing was heard: the recording is empty")
    listener.end()
    if left:
        yield listener.total, reply(model, listener, question, gate, max_new_tokens)


def reply(
    model: SafeModel,
    listener: Listener,
    question: str,
    gate: Strength | None,
    max_new_tokens: int,
) -> str:
    """The answer to a question about what is heard now."""
    asked = {"question": question, listener.name: listener.heard()}
    strength = None if gate is None else {listener.name: gate}
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    (found,) = SafePipeline(model)(asked, gate=strength, **options)
    text: str = found["generated_text"]
    return text
