"""``safe verify --server URL``: what a running server promises, asked of it from outside.

The server is asked the same questions with sounds and without, one at a time in every order, and
then all at once. Alone, answers are compared bit for bit, by their tokens and log-probabilities;
where a server does not repeat itself to the bit, because others ask it too, and among several, by
tokens and to within the rounding of a batch of another shape.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import urllib.error
import urllib.request
import wave
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np

from safe_framework.core.model import SafeModel
from safe_framework.errors import DataError
from safe_framework.serving.embedded import EmbeddedEngine
from safe_framework.serving.engine import Request, Sampling
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.verification.certificate import Law, law_result, not_applicable

QUESTIONS = (
    "What do you hear?",
    "How many legs does a spider have?",
    "Name a colour.",
    "Which instrument is playing?",
)
_TOKENS, _AT_ONCE, _SECONDS = 12, 12, 600.0
_ROUNDING = 1e-2
"""In nats: more than sums in another order differ by, and far less than a sample moves."""

Token = tuple[str, float]
Answer = Sequence[Token]


@attrs.frozen
class ServerClient:
    """A server that is asked.

    Attributes:
        url: of the server, without a path.
        key: that it asks for; None for none.
    """

    url: str
    key: str | None = None

    def get(self, path: str) -> Any:
        """What is at a path."""
        return self._call(path, None)

    def answer(self, model: str, content: Any, **options: Any) -> Answer:
        """The tokens of the likeliest answer to one message.

        Args:
            model: as the server calls it.
            content: of the message.
            **options: of the request.
        """
        body = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": _TOKENS,
            "temperature": 0,
            "logprobs": True,
            **options,
        }
        (choice,) = self._call("/v1/chat/completions", body)["choices"]
        return [(one["token"], one["logprob"]) for one in choice["logprobs"]["content"]]

    def _call(self, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"content-type": "application/json"}
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, content, headers)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            told = error.read(2000).decode("utf-8", "replace")
            raise DataError(f"{self.url}{path}: {error.code}: {told}") from error
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.url}{path} cannot be asked: {error}",
                hint="start it: safe serve ADAPTER",
            ) from error


def server_laws(
    client: ServerClient,
    model: SafeModel | None = None,
    *,
    progress: ProgressCallback = no_progress,
) -> list[Law]:
    """Ask a server, and say of each of its promises whether it holds.

    Args:
        client: of the server.
        model: what it serves, loaded here too, to compare with the bare base; None to leave that
            out.
        progress: called as questions are answered.

    Raises:
        DataError: it cannot be asked.
    """
    served = client.get("/v1/models")["data"][0]
    rates = served["safe"]["sampling_rates"]
    asker = _Asker(client, served["id"], progress)
    plain = {words: asker.ask(words) for words in QUESTIONS}
    exact = all(asker.ask(words) == plain[words] for words in QUESTIONS)
    laws = [_repeats(exact)]
    if not any(rates.values()):
        why = "it has no sense of sound, and samples of others are not made up"
        laws += [not_applicable("L2", _OFF, why), not_applicable("L8", _LEAK, why)]
    else:
        sounds = {name: asker.sounds(plain, name, exact) for name in (_OFF, _LEAK, _TOGETHER)}
        laws += list(sounds.values())
    if model is not None:
        laws.append(_as_base(model, plain))
    return laws


_REPEATS = "asked twice alone, it answers the same"
_OFF = "gate 0 is as without a sample"
_LEAK = "no answer knows the sample of another"
_TOGETHER = "together as alone"
_BASE = "without a sample it is the base"


def _repeats(exact: bool) -> Law:
    if exact:
        return law_result("S1", _REPEATS, f"{len(QUESTIONS)} questions, bit for bit", [])
    why = "not to the bit: others ask it too, so that answers are compared to within rounding"
    return not_applicable("S1", _REPEATS, why)


class _Asker:
    """Asks one server questions with sounds, and compares what it answers."""

    def __init__(self, client: ServerClient, name: str, progress: ProgressCallback) -> None:
        self.client, self.name, self.progress = client, name, progress
        self._count = 0
        self.parts = [{"type": "input_audio", "input_audio": sound(hertz)} for hertz in (220, 1760)]

    def ask(self, words: str, part: Any = None, **options: Any) -> Answer:
        """The answer to a question, with a sound or without."""
        text = {"type": "text", "text": words}
        content = words if part is None else [part, text]
        found = self.client.answer(self.name, content, **options)
        self._count += 1
        self.progress("questions", self._count, max(self._count, _ALL))
        return found

    def sounds(self, plain: Mapping[str, Answer], law: str, exact: bool) -> Law:
        """One of the laws that take a sound."""
        if law == _OFF:
            return self._off(plain, exact)
        return self._orders(plain, exact) if law == _LEAK else self._together(plain)

    def _off(self, plain: Mapping[str, Answer], exact: bool) -> Law:
        findings = [
            f"{words!r}: another answer than without the sound"
            for words in QUESTIONS
            if not same(self.ask(words, self.parts[0], gate=0), plain[words], exact=exact)
        ]
        return law_result("L2", _OFF, _compared(len(QUESTIONS), exact), findings)

    def _orders(self, plain: Mapping[str, Answer], exact: bool) -> Law:
        """Without, with one sound and with another, one after the other in every order."""
        words, found = QUESTIONS[0], list[str]()
        kinds = ("no sound", "a low tone", "a high tone")
        expected = [plain[words], *(self.ask(words, part) for part in self.parts)]
        for order in itertools.permutations(range(3)):
            for kind in order:
                answer = self.ask(words, None if kind == 0 else self.parts[kind - 1])
                if not same(answer, expected[kind], exact=exact):
                    behind = " behind ".join(kinds[one] for one in reversed(order))
                    found.append(f"{kinds[kind]} is answered otherwise ({behind})")
        return law_result("L8", _LEAK, _compared(18, exact), found)

    def _together(self, plain: Mapping[str, Answer]) -> Law:
        """All kinds at once, by many clients."""
        cases = [(words, part) for words in QUESTIONS for part in (None, *self.parts)]
        expected = [plain[w] if part is None else self.ask(w, part) for w, part in cases]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(lambda case: self.ask(*case), cases * 2))
        findings = [
            f"{words!r} {'without' if part is None else 'with'} a sound: another answer than alone"
            for (words, part), answer, alone in zip(cases * 2, found, expected * 2, strict=True)
            if not same(answer, alone, exact=False)
        ]
        return law_result("S2", _TOGETHER, _compared(len(found), exact=False), findings)


_ALL = 2 * len(QUESTIONS) + len(QUESTIONS) + 2 + 18 + 2 * len(QUESTIONS) + 6 * len(QUESTIONS)


def _compared(count: int, exact: bool) -> str:
    how = "bit for bit" if exact else "by tokens, and log-probabilities to within rounding"
    return f"{count} answers, {how}"


def same(one: Answer, other: Answer, *, exact: bool) -> bool:
    """Whether two answers are the same, to the bit or but for rounding.

    Where rounding decides between two tokens that are equally likely, the rest differs: what
    follows such a place is not compared.

    >>> same([("a", -1.0)], [("a", -1.001)], exact=False)
    True
    >>> same([("a", -1.0)], [("a", -1.001)], exact=True)
    False
    >>> same([("a", -0.2), ("b", -9.0)], [("c", -0.201), ("d", -1.0)], exact=False)
    True
    """
    if exact:
        return list(one) == list(other)
    for (word, value), (word2, value2) in zip(one, other, strict=False):
        if abs(value - value2) > _ROUNDING:
            return False
        if word != word2:
            return True
    return len(one) == len(other)


def sound(hertz: float, seconds: float = 0.5, rate: int = 16_000) -> dict[str, str]:
    """A tone as ``input_audio`` takes it.

    Args:
        hertz: its pitch.
        seconds: how long it lasts.
        rate: samples a second, in hertz.
    """
    times = np.arange(int(seconds * rate)) / rate
    values = (10_000 * np.sin(2 * math.pi * hertz * times)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(values.tobytes())
    return {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}


def _as_base(model: SafeModel, plain: Mapping[str, Answer]) -> Law:
    """What the server answered without a sample, beside the bare base in this process."""
    engine, findings, exact = EmbeddedEngine(model), list[str](), True
    for words, answer in plain.items():
        request = Request([{"role": "user", "content": words}], 0.0, Sampling(max_tokens=_TOKENS))
        expected = _of_base(model, engine.prepare(request).batch)[: len(answer)]
        exact &= list(answer) == list(expected)
        if not same(answer, expected, exact=False):
            findings.append(f"{words!r}: another answer than the base's")
    return law_result("L2", _BASE, _compared(len(plain), exact), findings)


def _of_base(model: SafeModel, batch: Mapping[str, Any]) -> Answer:
    base: Any = model.base
    moved = {key: value.to(model.device) for key, value in batch.items()}
    with model.off():
        out = base.generate(
            **moved, max_new_tokens=_TOKENS, do_sample=False, return_dict_in_generate=True,
            output_logits=True,
        )  # fmt: skip
    logs = [step[0].float().log_softmax(-1) for step in out.logits]
    ids = [int(one.argmax()) for one in logs]
    decode = model.tokenizer.decode
    texts = [decode([one], clean_up_tokenization_spaces=False) for one in ids]
    pairs = zip(ids, texts, logs, strict=True)
    return [(text, float(one[number])) for number, text, one in pairs]
