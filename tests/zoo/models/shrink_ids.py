"""Ids of special tokens: where a config keeps them, and their places in a small vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.zoo.models.shrink_sizes import VOCABULARY

SMALL = 16
"""Ids below this one stay what they are."""

_ID = re.compile(
    r".*_(token_id|token_index|token_ids)|image_patch_id|vocab_offset|im_(start|end|newline)_id"
    r"|(pad|bos|eos|mask|unk)_index|.*suppress_tokens"
)


def special_ids(config: dict[str, Any]) -> set[int]:
    """Every id that a config names as special, nested configs included."""
    return {number for _, number in _named(config) if number >= 0}


def _named(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _named(value)
        elif _ID.fullmatch(str(name)):
            numbers = value if isinstance(value, list) else [value]
            yield from ((name, number) for number in numbers if type(number) is int)


def small_ids(config: dict[str, Any]) -> dict[int, int]:
    """Where each special id moves: the large ones to the vocabulary's end, in their order."""
    large = sorted(number for number in special_ids(config) if number >= SMALL)
    return {number: VOCABULARY - len(large) + rank for rank, number in enumerate(large)}


def move_ids(config: dict[str, Any], moved: dict[int, int]) -> dict[str, Any]:
    """The config with its special ids moved, nested configs included."""
    return {name: _move(name, value, moved) for name, value in config.items()}


def _move(name: str, value: Any, moved: dict[int, int]) -> Any:
    if isinstance(value, dict):
        return move_ids(value, moved)
    if not _ID.fullmatch(str(name)):
        return value
    if isinstance(value, list):
        return [moved.get(number, number) for number in value]
    return moved.get(value, value) if type(value) is int else value
