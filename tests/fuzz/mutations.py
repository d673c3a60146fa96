"""Seeded mutations: of bytes, of texts by their tokens, and of JSON by its values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)
"""Where integers of a header overflow, or their sign turns."""

TEXTS = (
    "", " ", "\0", "\n", "\x1b[31m", "\u202e", "é", "\U0001f408", "a" * 10_000, "/", ".", "..",
    "~", "../../outside", "/dev/null", "/proc/self/mem", "file:///etc/hostname", "C:\\x", "con",
    "http://localhost/a", "zip://a::b", "hf:owner/name:train", "%s", "{question}", "{0.__class__}",
    "<audio>", "None", "nan", "[", "{", '"', "'", "a,b", "\t", "x.wav", "x.jsonl", "audio",
)  # fmt: skip
"""What a name, a file or a question may be by mistake or by malice."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 0.5, -0.0, 1e-300, 1e300, 10**9, 2**63, 10**30,
    [], {}, [[]], [None], [0], ["a", 1], {"": ""}, {"path": "x.wav"}, {"bytes": "x"},
    {"array": [0.0], "sampling_rate": 0}, {"array": "x", "sampling_rate": 16_000},
    {"array": [[1.0], [1.0, 2.0]], "sampling_rate": 16_000}, *TEXTS,
)  # fmt: skip
"""Values of every type of JSON."""

TOML_VALUES = (
    "0", "-1", "1", "3", "0.5", "1e300", "-1e-300", "nan", "inf", "-inf", "10_000_000_000",
    "99999999999999999999", "0x7fffffff", "true", "false", "[]", "{}", "[[]]", "[0]", '["a", 1]',
    "[0, 0]", "[-1]", "[99]", '{ use = "whisper" }', "1979-05-27T07:32:00Z", "'''a'''",
    '"\\u0000"', '"\\U0001F408"', *(json.dumps(text) for text in TEXTS if text.isprintable()),
)  # fmt: skip
"""Values of every type of TOML, as they are written."""

_NUMERALS = ("0", "1", "2", "3", "7", "64", "1000", "100000000", "0.5", "1e-9", "1.0", "1e30")

_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|[\w.+-]+|\s+|.', re.DOTALL)


def mutated_bytes(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Some bytes changed, cut, repeated, or taken from another file; mostly at the beginning."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 4)):
        _change_bytes(changed, others, random)
    return bytes(changed)


def _change_bytes(changed: bytearray, others: Sequence[bytes], random: Random) -> None:
    size = len(changed)
    reach = size if random.random() < 0.4 else min(size, 160)  # headers are at the beginning
    at = random.randrange(reach) if reach else 0
    length = random.choice((1, 2, 4, 8, 16, 64, 512))
    match random.randrange(9):
        case 0 if size:
            changed[at] ^= 1 << random.randrange(8)
        case 1 if size:
            changed[at] = random.randrange(256)
        case 2:
            width = random.choice((2, 4, 8))
            number = random.choice(NUMBERS) % 256**width
            changed[at : at + width] = number.to_bytes(width, random.choice(("little", "big")))
        case 3:
            del changed[random.randrange(size + 1) :]
        case 4:
            del changed[at : at + length]
        case 5:
            changed[at:at] = changed[at : at + length] * random.choice((1, 2, 20))
        case 6:
            changed[at:at] = random.randbytes(length)
        case 7:
            changed[at : at + length] = bytes([random.choice((0, 255))]) * length
        case _:
            other = random.choice(others)
            start = random.randrange(len(other) or 1)
            changed[at : at + length] = other[start : start + length]


def mutated_text(text: str, others: Sequence[str], values: Sequence[str], random: Random) -> bytes:
    """A text with tokens or lines replaced, repeated, swapped or left out; rarely with bytes.

    Args:
        text: that is changed.
        others: whose lines and tokens may be taken.
        values: tokens that may be put in.
        random: what decides.
    """
    if random.random() < 0.1:
        return mutated_bytes(text.encode(), [other.encode() for other in others], random)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        change = _change_lines if random.random() < 0.3 else _change_tokens
        text = change(text, others, values, random)
    return text.encode("utf-8", "surrogatepass")


def _change_tokens(text: str, others: Sequence[str], values: Sequence[str], random: Random) -> str:
    tokens = _TOKEN.findall(text)
    if not tokens:
        return text
    solid = [place for place, token in enumerate(tokens) if not token.isspace()] or [0]
    at = random.choice(solid)
    match random.choice((0, 1, 2, 3, 4, 4, 4, 5)):
        case 0:
            del tokens[at]
        case 1:
            tokens.insert(at, tokens[at])
        case 2:
            other = random.choice(solid)
            tokens[at], tokens[other] = tokens[other], tokens[at]
        case 3:
            tokens[at] = random.choice(_TOKEN.findall(random.choice(others)) or [""])
        case 4 if numbers := [place for place in solid if tokens[place][0].isdigit()]:
            tokens[random.choice(numbers)] = random.choice(_NUMERALS)  # of a type that fits
        case _:
            tokens[at] = random.choice(values)
    return "".join(tokens)


def _change_lines(text: str, others: Sequence[str], values: Sequence[str], random: Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    at = random.randrange(len(lines))
    match random.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            other = random.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines.insert(at, random.choice(random.choice(others).splitlines(keepends=True)))
        case _:
            lines[at] = lines[at].rstrip("\n") + random.choice(values) + "\n"
    return "".join(lines)


def mutated_json(value: Any, random: Random) -> Any:
    """A JSON value with one of those in it replaced, left out, or put under another key."""
    places = list(_places(value, ()))
    path = random.choice(places)
    if not path:
        return random.choice(VALUES)
    copy = json.loads(json.dumps(value))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(TEXTS)] = holder.pop(key)
        case 2:
            holder[key] = [holder[key]] * random.choice((0, 1, 2))
        case 3 if isinstance(holder[key], str):
            letters = list(holder[key] or "a")
            letters[random.randrange(len(letters))] = random.choice("a0/.\0 é")
            holder[key] = "".join(letters)
        case _:
            holder[key] = random.choice(VALUES)
    return copy


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, one in inner:
        yield from _places(one, (*path, key))
