"""What a server asks of an engine: requests in, pieces of answers out.

A server knows this file alone of the engine behind it, and an engine nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Protocol

import attrs

from safe_framework.core.relevance import Strength
from safe_framework.errors import SafeError

Message = Mapping[str, Any]
FinishReason = Literal["stop", "length"]
_NO_BIAS: Mapping[int, float] = MappingProxyType({})


class StoppedError(SafeError):
    """The engine ends, and answers no more."""


class TooLongError(SafeError, ValueError):
    """A prompt and its answer are longer than the base or the server takes."""


@attrs.frozen
class Sampling:
    """How an answer's tokens are chosen, and where it ends.

    Attributes:
        max_tokens: of the answer; None for as many as the engine allows.
        temperature: 0 for the likeliest token; None for what the base's generation settings say.
        top_p: share of probability that is sampled from, above 0 and at most 1.
        top_k: how many of the likeliest tokens are sampled from; 0 for all.
        frequency_penalty: taken off a token's logit for each time that the answer has it.
        presence_penalty: taken off it if the answer has it at all.
        repetition_penalty: divides the positive logits of tokens that prompt or answer have, and
            multiplies negative ones.
        logit_bias: added to logits, by token id.
        seed: of the sampling; None for one that nobody knows.
        stop: texts before which an answer ends.
        n: how many answers.
        logprobs: whether to tell the log-probability of each token.
        top_logprobs: of how many of the likeliest tokens besides.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = _NO_BIAS
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0


@attrs.frozen(eq=False)
class Request:
    """A conversation to be answered.

    Attributes:
        messages: in the form of transformers' chats; samples and pictures are decoded already.
        gate: strength of all modalities, or by modality; None for the model's own.
        sampling: how the answer is chosen.
        as_question: whether its one message is asked in the recipe's prompt.
    """

    messages: Sequence[Message]
    gate: Strength | Mapping[str, Strength] | None = None
    sampling: Sampling = attrs.field(factory=Sampling)
    as_question: bool = False


@attrs.frozen
class TokenLogprob:
    """A token, and how likely it was.

    Attributes:
        id: of the token.
        text: that it stands for by itself.
        logprob: its natural logarithm of probability, by the model's own logits.
        top: the likeliest tokens at its place, as (id, text, logprob).
    """

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@attrs.frozen
class Piece:
    """A piece of one of a request's answers.

    Attributes:
        index: of the answer.
        text: that comes next; may be empty.
        tokens: that were chosen since the last piece, where log-probabilities are asked for.
        finish: why the answer ends with this piece; None where it goes on.
        count: tokens of the answer so far, its end included.
    """

    index: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    count: int = 0


@attrs.frozen
class Heard:
    """What a request's answers were given besides words, told before their first piece.

    Attributes:
        gates: the strength with which each modality that has a sample acts; 0 is off. What was
            left to a relevance head is 1 where it opened and 0 where it did not.
    """

    gates: Mapping[str, float]


@attrs.frozen
class Failed:
    """A request that will not be answered.

    Attributes:
        error: why.
    """

    error: Exception


Event = Heard | Piece | Failed
Sink = Callable[[Event], None]
"""Is given what becomes of a request, in the engine's own thread: it must not wait."""


class Prepared(Protocol):
    """A request that an engine has read, and can answer.

    Attributes:
        prompt_tokens: that its prompt has.
        max_tokens: that an answer may have.
        samples: how many it has of each modality.
    """

    @property
    def prompt_tokens(self) -> int:
        """Of the prompt."""

    @property
    def max_tokens(self) -> int:
        """Of an answer."""

    @property
    def samples(self) -> Mapping[str, int]:
        """By modality."""


class Ticket(Protocol):
    """A request that was handed in."""

    def cancel(self) -> None:
        """Give it up: it is decoded no further, and its sink is told no more."""


class Load(Protocol):
    """How much an engine has to do."""

    @property
    def waiting(self) -> int:
        """Requests whose prompts were not read yet."""

    @property
    def running(self) -> int:
        """Answers that are being decoded."""


class Engine(Protocol):
    """What answers requests.

    Laws:
        - a request without a sample gets the tokens and log-probabilities of the bare base;
        - what a request is answered depends on no other request, but for the rounding of sums
          over a batch of another shape;
        - each request that was submitted gets, unless it is cancelled, either a last piece for
          each of its answers or a failure.
    """

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def load(self) -> Load:
        """How much there is to do."""

    def prepare(self, request: Request) -> Prepared:
        """Read a request; may be called in any thread.

        Raises:
            SafeError: it cannot be answered as it is.
        """

    def submit(self, prepared: Any, sink: Sink) -> Ticket:
        """Hand in what ``prepare`` gave, to be answered when there is room."""

    def stop(self, wait: float = 0.0) -> None:
        """End, after what was submitted was answered or ``wait`` seconds have passed."""
