"""Bodies of requests, mutated at random: the same for the same seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

_VALUES: list[Any] = [
    None, True, -1, 0, 1.5, 10**30, 1e308, "", "w5", "\ud800", "x" * 3000, [], {}, [[]],
    {"type": "text"}, ["text"], "data:image/png;base64,", "file:///etc/passwd", "\0", "auto",
]  # fmt: skip


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value inside lies."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    if not isinstance(value, (dict, list)):
        return [at]
    return [at, *(path for key, one in inner for path in _paths(one, (*at, key)))]


def _change(body: Any, random: Random, how: Callable[[Any, Any], None]) -> None:
    path = random.choice([one for one in _paths(body) if one])
    holder = body
    for key in path[:-1]:
        holder = holder[key]
    how(holder, path[-1])


def _replaced(body: Any, random: Random) -> None:
    _change(body, random, lambda holder, key: holder.__setitem__(key, random.choice(_VALUES)))


def _removed(body: Any, random: Random) -> None:
    _change(body, random, lambda holder, key: holder.__delitem__(key))


def _doubled(body: Any, random: Random) -> None:
    def double(holder: Any, key: Any) -> None:
        """Say it twice, where there can be two."""
        holder[key] = [holder[key], copy.deepcopy(holder[key])]

    _change(body, random, double)


def _renamed(body: Any, random: Random) -> None:
    def rename(holder: Any, key: Any) -> None:
        """Another key, for the same value."""
        if isinstance(holder, dict):
            holder[random.choice(["typ", "data ", "N", "stop", "gate", "tools"])] = holder.pop(key)

    _change(body, random, rename)


def _added(body: Any, random: Random) -> None:
    names = ["gate", "stop", "seed", "n", "logit_bias", "top_p", "stream", "max_tokens", "tools",
             "user", "metadata", "response_format", "top_logprobs", "logprobs"]  # fmt: skip
    body[random.choice(names)] = random.choice(_VALUES)


def _spoiled_sample(body: Any, random: Random) -> None:
    """Change letters in the base64 of a sample."""
    inner = body["messages"][0]["content"][0]["input_audio"]
    letters = list(inner["data"])
    for _ in range(random.randint(1, 40)):
        letters[random.randrange(min(len(letters), 200))] = random.choice("Aa0/+=#")
    inner["data"] = "".join(letters)


def _shortened_sample(body: Any, random: Random) -> None:
    inner = body["messages"][0]["content"][0]["input_audio"]
    inner["data"] = inner["data"][: 4 * random.randrange(len(inner["data"]) // 4)]


def _other_format(body: Any, random: Random) -> None:
    inner = body["messages"][0]["content"][0]["input_audio"]
    inner["format"] = random.choice(["mp3", "flac", "WAV", "pcm16", "", 3])


MANGLERS = [
    _replaced, _removed, _doubled, _renamed, _added, _spoiled_sample, _shortened_sample,
    _other_format,
]  # fmt: skip


def mangled(body: Any, seed: int) -> bytes:
    """A body after a few mutations, and now and then after one of its bytes."""
    random = Random(seed)
    changed = copy.deepcopy(body)
    for _ in range(random.randint(1, 3)):
        try:
            random.choice(MANGLERS)(changed, random)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            continue  # an earlier one took away what it would change
    content = bytearray(json.dumps(changed).encode())
    if random.random() < 0.2:
        for _ in range(random.randint(1, 8)):
            content[random.randrange(len(content))] = random.randrange(256)
    return bytes(content)
