"""The text of an answer as its tokens come, up to where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """Tokens in, pieces of text out that joined are the whole.

    A token may be a part of a letter, and a piece of text may be the beginning of one at which the
    answer ends: both are held back until that is known.

    Args:
        tokenizer: the base's.
        ends: ids that end an answer, each a sequence: of a text, or of a turn.
        stop: texts before which it ends.

    Attributes:
        ids: all that came.
        stopped: whether the answer has ended.
    """

    def __init__(
        self, tokenizer: Any, ends: Sequence[Sequence[int]] = (), stop: Sequence[str] = ()
    ) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.ends = [tuple(end) for end in ends if end]
        self.ids: list[int] = []
        self.stopped = False
        self._read = self._done = 0  # ids whose text is known, and those that it is read behind
        self._held = ""

    def add(self, token: int) -> str:
        """The text that is certain once this token has come."""
        self.ids.append(token)
        if self._ended():
            self.stopped = True
            return self._release()
        behind = self._new_text(whole=False)
        return self._pass(behind)

    def finish(self) -> str:
        """What was held back, where the answer ends by its length."""
        return self._pass(self._new_text(whole=True)) + self._release()

    def _ended(self) -> bool:
        for end in self.ends:
            if tuple(self.ids[-len(end) :]) == end:
                del self.ids[-len(end) :]
                self._held += self._new_text(whole=True)
                return True
        return False

    def _may_end(self) -> int:
        """How many of the last ids may be the beginning of an end."""
        for length in range(max(map(len, self.ends), default=1) - 1, 0, -1):
            last = tuple(self.ids[-length:])
            if len(last) == length and any(end[:length] == last for end in self.ends):
                return length
        return 0

    def _new_text(self, *, whole: bool) -> str:
        """The text of ids that is not known yet, if it is of whole letters."""
        until = len(self.ids) if whole else len(self.ids) - self._may_end()
        if until <= self._read:
            return ""
        before = self._decoded(self._done, self._read)
        now = self._decoded(self._done, until)
        if not whole and now.endswith(_BROKEN):
            return ""
        self._done, self._read = self._read, until
        return now[len(before) :]

    def _decoded(self, start: int, end: int) -> str:
        text: str = self.tokenizer.decode(
            self.ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _pass(self, text: str) -> str:
        """Pass text on, up to a stop; what may begin one is held back."""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.stopped = True
            self._held, out = "", self._held[: min(found)]
            return out
        keep = max((_overlap(self._held, stop) for stop in self.stop), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def _release(self) -> str:
        """All that was held; up to a stop, if the last letters complete one."""
        found = [at for at in (self._held.find(stop) for stop in self.stop) if at >= 0]
        out = self._held[: min(found)] if found else self._held
        self._held = ""
        return out


def _overlap(text: str, stop: str) -> int:
    """How many of the last letters may be the beginning of a stop.

    >>> _overlap("one En", "End"), _overlap("one", "End")
    (2, 0)
    """
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
