"""Every error that the framework raises on purpose.

Each says what is wrong, and its hint the one thing to do about it:

>>> print(SampleError("audio[0] holds NaN", hint="drop or repair the recording"))
audio[0] holds NaN
hint: drop or repair the recording
"""

import re
from functools import partial

_LONG_WORD = re.compile(r"\S{400,}")
"""Words that no person wrote: whole files, where a name was expected."""


class SafeError(Exception):
    """Base class of the framework's errors.

    Args:
        message: what is wrong, with names in backticks and no final period; the middle of a word
            of hundreds of letters is left out.
        hint: the one thing to do, shown on a line of its own.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message, self.hint = _cut(message), _cut(hint)
        super().__init__(f"{self.message}\nhint: {self.hint}" if hint else self.message)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the hint, so that the error survives a worker process."""
        return _rebuild, (type(self), self.message, self.hint)


def _cut(text: str) -> str:
    return _LONG_WORD.sub(lambda found: f"{found[0][:200]}...{found[0][-50:]}", text)


def _rebuild(kind: type[SafeError], message: str, hint: str) -> SafeError:
    return kind(message, hint=hint)


class PluginError(SafeError, LookupError):
    """A plugin that is unknown, ambiguous, broken, or breaks its interface."""


class UnsupportedBaseError(SafeError):
    """A base model that cannot honour the laws; the message says what was seen."""


class InjectionError(SafeError, RuntimeError):
    """A fused layer was never reached, so the modality would have been ignored silently."""


class SampleError(SafeError, ValueError):
    """A sample that an encoder cannot take: wrong rate, NaN, wrong shape.

    Args:
        message: what is wrong.
        hint: the one thing to do.
        row: of the batch that it is in, from 0; None where that is not known.
    """

    def __init__(self, message: str, *, hint: str = "", row: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.row = row

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the row too."""
        return partial(type(self), self.message, hint=self.hint, row=self.row), ()


class DataError(SafeError, ValueError):
    """A data file or row that cannot be used; the message names the file and the row."""


class AdapterError(SafeError, ValueError):
    """An adapter folder that is incomplete, or was made for another base or encoder."""


class CheckpointError(SafeError, LookupError):
    """Pretrained weights that cannot be found or read."""


class KeywordError(SafeError, TypeError):
    """A keyword argument that nothing takes, so that it would have been dropped."""


def cannot_transcribe(encoder: str, name: str) -> SafeError:
    """The error about an encoder of modality ``name`` that writes no transcripts."""
    return SafeError(
        f"`transcript` of `{name}` needs an encoder that can transcribe, and `{encoder}` cannot",
        hint='use one that can, such as `encoder = { use = "whisper", ... }`, or leave it out',
    )
