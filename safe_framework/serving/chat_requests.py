"""The body of ``POST /v1/chat/completions`` as an engine's request, or an error that names a field.

Every field is either honoured or refused by its name: none is passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from safe_framework.core.relevance import Strength
from safe_framework.serving import media
from safe_framework.serving.engine import Message, Request, Sampling
from safe_framework.serving.limits import Limits, RequestError
from safe_framework.utils.suggest import nearest

_ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
}  # fmt: skip
_FIELDS = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "logit_bias", "seed", "stop", "n", "logprobs", "top_logprobs", "gate",
    "user", "response_format", "modalities",
)  # fmt: skip
_NESTED = 64
_SECONDS = 60.0
"""That a sound may last whose sense does not say how long it takes."""


@attrs.frozen(eq=False)
class ServedModel:
    """What of a model a request can name.

    Attributes:
        name: of the model.
        rates: samples a second that each modality takes, in hertz; None for what is no sound.
        sees: whether the base takes pictures.
        vocabulary: how many tokens there are.
        longest: seconds that a sound of a modality may last, where it takes several windows.
    """

    name: str
    rates: Mapping[str, int | None]
    sees: bool
    vocabulary: int
    longest: Mapping[str, float] = attrs.field(factory=dict)

    @property
    def hears(self) -> list[str]:
        """The modalities of sounds."""
        return [name for name, rate in self.rates.items() if rate is not None]


@attrs.frozen(eq=False)
class ChatRequest:
    """What a body asks for.

    Attributes:
        request: for the engine.
        stream: whether the answer is sent as it grows.
        usage: whether a stream ends with the number of tokens.
    """

    request: Request
    stream: bool
    usage: bool


def parse_json(content: bytes) -> dict[str, Any]:
    """The object in a body.

    Raises:
        RequestError: there is none, or it holds what JSON has not, such as NaN.
    """
    try:
        text = content.decode("utf-8")
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise RequestError("the body must be an object")
    _check_depth(found, _NESTED)
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise RequestError("the body is nested too deeply")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        if isinstance(one, (dict, list)):
            _check_depth(one, left - 1)


def read_request(body: Mapping[str, Any], model: ServedModel, limits: Limits) -> ChatRequest:
    """What a body asks for; its sounds and pictures are decoded.

    Args:
        body: as JSON has it.
        model: that is asked.
        limits: of a request.

    Raises:
        RequestError: a field is unknown or has no such value.
    """
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in _FIELDS:
            raise RequestError(
                f"`{name[:80]}` is not served", hint=nearest(name[:80], _FIELDS), param=name[:80]
            )
    if _text(given.get("model"), "model") != model.name:
        raise RequestError(
            f"there is no model {given['model']!r:.80}",
            hint=f"this server has `{model.name}`",
            status=404,
            param="model",
            code="model_not_found",
        )
    _check_form(given)
    sampling = _sampling(given, model, limits)
    stream = _flag(given, "stream")
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise RequestError("`stream_options` takes `include_usage`", param="stream_options")
    if options and not stream:
        raise RequestError("`stream_options` needs `stream`", param="stream_options")
    messages = _messages(given.get("messages"), model, limits)
    request = Request(messages, _gate(given.get("gate"), model), sampling)
    return ChatRequest(request, stream, _flag(options, "include_usage"))


def _check_form(given: Mapping[str, Any]) -> None:
    """Refuse answers that are no plain text."""
    if given.get("response_format", {"type": "text"}) != {"type": "text"}:
        raise RequestError('`response_format` must be {"type": "text"}', param="response_format")
    if given.get("modalities", ["text"]) != ["text"]:
        raise RequestError('`modalities` must be ["text"]: answers are texts', param="modalities")
    if "user" in given:
        _text(given["user"], "user")


# Numbers


def _sampling(given: Mapping[str, Any], model: ServedModel, limits: Limits) -> Sampling:
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in given]
    if len(names) > 1:
        raise RequestError(
            "`max_tokens` and `max_completion_tokens` mean the same", param="max_tokens"
        )
    logprobs = _flag(given, "logprobs")
    top = _whole(given, "top_logprobs", 0, 20)
    if top is not None and not logprobs:
        raise RequestError("`top_logprobs` needs `logprobs`", param="top_logprobs")
    return Sampling(
        max_tokens=_whole(given, names[0], 1, 2**31) if names else None,
        temperature=_number(given, "temperature", 0, 2),
        top_p=_number(given, "top_p", 0, 1, above=True),
        top_k=_whole(given, "top_k", 0, 2**31),
        frequency_penalty=_number(given, "frequency_penalty", -2, 2) or 0.0,
        presence_penalty=_number(given, "presence_penalty", -2, 2) or 0.0,
        repetition_penalty=_number(given, "repetition_penalty", 0, 10, above=True),
        logit_bias=_biases(given.get("logit_bias", {}), model.vocabulary),
        seed=_whole(given, "seed", -(2**63), 2**63 - 1),
        stop=_stops(given.get("stop", [])),
        n=_whole(given, "n", 1, limits.answers) or 1,
        logprobs=logprobs,
        top_logprobs=top or 0,
    )


def _number(
    given: Mapping[str, Any], name: str, low: float, high: float, *, above: bool = False
) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (above and value == low):
        least = f"above {low:g}" if above else f"from {low:g}"
        raise RequestError(f"`{name}` must be a number {least} to {high:g}", param=name)
    return float(value)


def _whole(given: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        raise RequestError(f"`{name}` must be a whole number from {low} to {high}", param=name)
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"`{name}` must be true or false", param=name)
    return value


def _biases(given: Any, vocabulary: int) -> dict[int, float]:
    if not isinstance(given, dict) or len(given) > 1024:
        raise RequestError(
            "`logit_bias` must be an object of at most 1024 tokens", param="logit_bias"
        )
    found = dict[int, float]()
    for token, bias in given.items():
        known = token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocabulary
        if not known:
            raise RequestError(
                f"`logit_bias` names {token!r:.20}, which is no token", param="logit_bias"
            )
        found[int(token)] = _number({"logit_bias": bias}, "logit_bias", -100, 100) or 0.0
    return found


def _stops(given: Any) -> tuple[str, ...]:
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or len(listed) > 4:
        raise RequestError("`stop` must be a text, or at most four", param="stop")
    found = tuple(_text(one, "stop") for one in listed)
    if not all(0 < len(one) <= 1000 for one in found):
        raise RequestError("`stop` must hold texts of 1 to 1000 letters", param="stop")
    return found


def _gate(given: Any, model: ServedModel) -> Strength | dict[str, Strength] | None:
    if given is None or not isinstance(given, dict):
        return None if given is None else _strength(given)
    for name in given:
        if name not in model.rates:
            raise RequestError(
                f"`gate` names {name!r:.40}, which is no modality",
                hint=f"modalities: {', '.join(model.rates) or 'none'}",
                param="gate",
            )
    return {name: _strength(value) for name, value in given.items() if value is not None}


def _strength(value: Any) -> Strength:
    if value == "auto" and isinstance(value, str):
        return "auto"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= 1:
        raise RequestError('`gate` must be from 0 to 1, or "auto"', param="gate")
    return float(value)


# Messages


def _messages(given: Any, model: ServedModel, limits: Limits) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise RequestError("`messages` must be a list of at least one message", param="messages")
    reader = _Reader(model, limits)
    return [reader.message(one, f"messages[{number}]") for number, one in enumerate(given)]


class _Reader:
    """Reads messages, and counts their samples."""

    def __init__(self, model: ServedModel, limits: Limits) -> None:
        self.model, self.limits, self.count = model, limits, 0

    def message(self, given: Any, place: str) -> Message:
        """A message in the form of transformers' chats."""
        _check_keys(given, place, ("role", "content"))
        role = given.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestError(
                f"`{place}.role` is {role!r:.40}", hint=f"roles: {', '.join(_ROLES)}", param=place
            )
        content = given.get("content")
        if isinstance(content, str):
            return {"role": _ROLES[role], "content": _text(content, f"{place}.content")}
        if not isinstance(content, list) or not content:
            raise RequestError(
                f"`{place}.content` must be a text or a list of parts", param=f"{place}.content"
            )
        parts = [self.part(one, f"{place}.content[{n}]") for n, one in enumerate(content)]
        return {"role": _ROLES[role], "content": parts}

    def part(self, given: Any, place: str) -> dict[str, Any]:
        """A part of a message: words, a sample or a picture."""
        kinds = {
            "text": self._words, "input_audio": self._audio, "image_url": self._image,
            "safe_sample": self._sample,
        }  # fmt: skip
        kind = given.get("type") if isinstance(given, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            raise RequestError(
                f"`{place}.type` is {kind!r:.40}", hint=f"types: {', '.join(kinds)}", param=place
            )
        if kind != "text":
            self.count += 1
            if self.count > self.limits.samples:
                raise RequestError(
                    f"there are more than {self.limits.samples} samples and pictures",
                    hint="send fewer at a time",
                    status=413,
                    param="messages",
                )
        return kinds[kind](given, place)

    def _words(self, given: Any, place: str) -> dict[str, Any]:
        _check_keys(given, place, ("type", "text"))
        return {"type": "text", "text": _text(given.get("text"), f"{place}.text")}

    def _audio(self, given: Any, place: str) -> dict[str, Any]:
        _check_keys(given, place, ("type", "input_audio", "modality"))
        name = self._modality(given.get("modality"), self.model.hears, place, "sound")
        inner, at = given.get("input_audio"), f"{place}.input_audio"
        _check_keys(inner, at, ("data", "format"))
        content, rate = media.decoded(inner.get("data"), f"{at}.data"), self.model.rates[name]
        assert rate is not None
        found = media.sound(content, inner.get("format"), at, rate, self._longest(name))
        return {"type": name, name: found}

    def _image(self, given: Any, place: str) -> dict[str, Any]:
        _check_keys(given, place, ("type", "image_url"))
        inner, at = given.get("image_url"), f"{place}.image_url"
        _check_keys(inner, at, ("url", "detail"))
        if inner.get("detail", "auto") not in ("auto", None):
            raise RequestError(f"`{at}.detail` is not served but for `auto`", param=f"{at}.detail")
        senses = [name for name in ("image", "images") if name in self.model.rates]
        if not (self.model.sees or senses):
            raise RequestError("this model takes no pictures", param=at)
        found = media.picture_at(inner.get("url"), f"{at}.url", self.limits)
        name = senses[0] if senses else "image"
        return {"type": name, name: found}

    def _sample(self, given: Any, place: str) -> dict[str, Any]:
        _check_keys(given, place, ("type", "modality", "data", "format"))
        name = self._modality(given.get("modality"), list(self.model.rates), place, "sample")
        rate, longest = self.model.rates[name], self._longest(name)
        return {"type": name, name: media.sample(given, place, rate, longest, self.limits)}

    def _longest(self, name: str) -> float:
        """Seconds that a sound of a modality may last."""
        own = self.model.longest.get(name, _SECONDS)
        return own if self.limits.audio_seconds is None else self.limits.audio_seconds

    def _modality(self, given: Any, known: Sequence[str], place: str, what: str) -> str:
        """The modality that a part names, or the only one that it can be of."""
        if given is None and len(known) == 1:
            return known[0]
        if given is None and "audio" in known and what == "sound":
            return "audio"
        if not isinstance(given, str) or given not in known:
            raise RequestError(
                f"`{place}.modality` is {given!r:.40}, which takes no {what} here",
                hint=f"modalities: {', '.join(known) or 'none'}",
                param=f"{place}.modality",
            )
        return given


def _check_keys(given: Any, place: str, known: Sequence[str]) -> None:
    if not isinstance(given, dict):
        raise RequestError(f"`{place}` must be an object", param=place)
    for name, value in given.items():
        if name not in known and value is not None:
            raise RequestError(
                f"`{place}.{name[:80]}` is not served",
                hint=f"keys: {', '.join(known)}",
                param=f"{place}.{name[:80]}",
            )


def _text(given: Any, place: str) -> str:
    if not isinstance(given, str):
        raise RequestError(f"`{place}` must be a text", param=place)
    try:
        given.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"`{place}` holds half of a letter", param=place) from error
    return given
