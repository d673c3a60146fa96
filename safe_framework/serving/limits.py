"""What a request may cost, and how it is told that it costs too much."""

from __future__ import annotations

from typing import Any

import attrs

from safe_framework.errors import SafeError


@attrs.frozen
class Limits:
    """The most that one request may ask for.

    Attributes:
        body_bytes: of its body.
        audio_seconds: that each of its sounds may last; None for what its sense takes.
        pixels: that each of its pictures may have.
        samples: sounds, pictures and samples of other senses together.
        answers: to one conversation.
        hosts: from which pictures are fetched; none by default.
    """

    body_bytes: int = 32 * 2**20
    audio_seconds: float | None = None
    pixels: int = 16_000_000
    samples: int = 16
    answers: int = 8
    hosts: tuple[str, ...] = ()


class RequestError(SafeError):
    """A request that is refused, with the HTTP status that says how.

    Args:
        message: what is wrong.
        hint: the one thing to do.
        status: of HTTP.
        param: the field that is wrong.
        code: by which a program tells it apart.
    """

    def __init__(
        self, message: str, *, hint: str = "", status: int = 400, param: str = "", code: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.status, self.param, self.code = status, param, code

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with all that it says."""
        return _rebuilt, (self.message, self.hint, self.status, self.param, self.code)

    @property
    def body(self) -> dict[str, Any]:
        """In the shape in which OpenAI's API reports errors."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": f"{self.message}; {self.hint}" if self.hint else self.message,
                "type": "server_error" if self.status >= 500 else kind,
                "param": self.param or None,
                "code": self.code or None,
            }
        }


def _rebuilt(message: str, hint: str, status: int, param: str, code: str) -> RequestError:
    return RequestError(message, hint=hint, status=status, param=param, code=code)
