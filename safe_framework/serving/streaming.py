"""An answer as it is made: ``generate`` in a thread of its own, its words here."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from safe_framework.core.turn_end import TurnEnd


class AnswerStreamer(TextIteratorStreamer):
    """The text of one answer, piece by piece, without what ends a turn.

    Args:
        tokenizer: the base's.
        end: of a turn; None where a text is continued.
    """

    def __init__(self, tokenizer: Any, end: TurnEnd | None = None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._end: tuple[int, ...] = () if end is None else end.ids
        self._held: list[int] = []

    def put(self, value: Tensor) -> None:
        """Take new ids; those that may begin the end of a turn are held until that is known."""
        put: Any = super().put
        if self.next_tokens_are_prompt or not self._end:
            put(value)
            return
        self._held += value.reshape(-1).tolist()
        while self._held and tuple(self._held) != self._end[: len(self._held)]:
            put(torch.tensor(self._held[:1]))
            del self._held[:1]

    def end(self) -> None:
        """Give what was held, unless it is the end of the turn, and end the stream."""
        put, end = super().put, super().end
        if self._held and tuple(self._held) != self._end:
            put(torch.tensor(self._held))  # type: ignore[no-untyped-call]  # of transformers
        end()  # type: ignore[no-untyped-call]  # of transformers


class _Left(StoppingCriteria):
    """Stops all rows once nobody reads the stream any more."""

    def __init__(self, left: threading.Event) -> None:
        self.left = left

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        return input_ids.new_full((len(input_ids),), self.left.is_set()).bool()


def streamed(
    generate: Callable[..., Any], streamer: TextIteratorStreamer, options: Mapping[str, Any]
) -> Iterator[str]:
    """The pieces of text that ``generate`` gives a streamer, as they come.

    The thread has this one's context, so that ``off()`` holds in it. It ends with the stream, also
    where that is left before its end.

    Args:
        generate: is given ``options`` and the streamer.
        streamer: of the text.
        options: of ``generate``.

    Raises:
        Exception: what ``generate`` raised.
    """
    left, raised = threading.Event(), list[BaseException]()
    criteria = StoppingCriteriaList([*(options.get("stopping_criteria") or ()), _Left(left)])

    def run() -> None:
        """Generate, and end the stream whatever happens."""
        try:
            generate(**{**options, "streamer": streamer, "stopping_criteria": criteria})
        except BaseException as error:  # raised again in the thread that reads
            raised.append(error)
            streamer.on_finalized_text("", stream_end=True)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        left.set()
        thread.join()
    if raised:
        raise raised[0]
