"""The keyword arguments of a pipeline's call that are handed on to ``generate``."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from safe_framework.errors import KeywordError, SafeError
from safe_framework.utils.suggest import nearest

LONGEST = 64
"""Tokens of an answer, where a call says nothing."""

_ELSEWHERE = {
    "clean_up_tokenization_spaces": "decode with `model.tokenizer` for other texts",
    "generate_kwargs": "give its options to the call itself: pipe(inputs, do_sample=True)",
    "num_workers": "leave it out: samples are read in this process",
    "padding": "leave it out: inputs are padded as the base needs it",
    "prefix": "put it in front of the text",
    "return_full_text": "leave it out: an answer is without what was asked; join the two",
    "return_tensors": "call `model.generate(**model.processor(...))` for ids",
    "return_text": "leave it out: answers are texts",
    "stop_sequence": 'write `stop_strings=["..."]`',
    "truncation": "leave it out: no text is cut; shorten it",
}
"""Options of transformers' own pipelines that are none here, and what to do instead."""

_MADE = ("input_ids", "inputs", "inputs_embeds", "attention_mask", "position_ids", "labels")
"""What a pipeline makes of its inputs."""

_COUNTS = ("max_new_tokens", "num_beams", "num_return_sequences")


def check_options(options: Mapping[str, Any], base: nn.Module) -> None:
    """Refuse an option that ``generate`` of the base would refuse, with what is meant by it.

    Args:
        options: by name.
        base: whose ``generate`` they are for.

    Raises:
        KeywordError: there is no such option.
        SafeError: greedy answers are asked for that would all be the same.
    """
    for name in options:
        if name in _ELSEWHERE:
            raise KeywordError(f"a pipeline has no option `{name}`", hint=_ELSEWHERE[name])
        if name in _MADE:
            raise KeywordError(
                f"a pipeline makes `{name}` of its inputs",
                hint=f"call `model.generate({name}=..., ...)` itself",
            )
    for name in _COUNTS:
        if (count := options.get(name)) is not None:
            checked_count(name, count)
    known = _known_options(base)
    for name in options:
        if name not in known:
            raise KeywordError(
                f"`{name}` is no option of a pipeline, nor of `generate`",
                hint=nearest(name, known) or "see transformers' GenerationConfig for its options",
            )
    settings = getattr(base, "generation_config", None)
    several, beams, sampled = (
        options.get(name, getattr(settings, name, None)) or 1
        for name in ("num_return_sequences", "num_beams", "do_sample")
    )
    if several > beams and sampled is not True:
        raise SafeError(
            f"`num_return_sequences = {several}` asks for {several} answers, and greedy decoding "
            "has one",
            hint=f"add `do_sample=True`, or `num_beams={several}`",
        )


def _known_options(base: nn.Module) -> Collection[str]:
    """What ``generate`` takes, and what it hands on to the base."""
    from transformers import GenerationConfig

    methods = [getattr(base, name, None) for name in ("generate", "forward", "__call__")]
    methods.append(getattr(base, "prepare_inputs_for_generation", None))
    named = {name for one in methods if one for name in inspect.signature(one).parameters}
    settings: Any = GenerationConfig  # whose constructor has no types
    return {*settings().to_dict(), *named, "tokenizer"} - {"args", "kwargs", "self"}


def checked_count(name: str, count: Any) -> int:
    """A whole number that is at least 1, of whatever library.

    Raises:
        SafeError: it is not.
    """
    try:
        number = operator.index(count)
    except TypeError:
        number = 0
    if number < 1:
        raise SafeError(f"`{name}` must be at least 1, not {count!r}")
    return number


def with_defaults(options: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Options of ``generate``, with those that a pipeline sets where nothing is said of them.

    Args:
        options: of a call, those that are None left out.
        tokenizer: by which ``stop_strings`` are found.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if not given.keys() & {"max_new_tokens", "max_length", "generation_config"}:
        given["max_new_tokens"] = LONGEST
    if "stop_strings" in given:
        given.setdefault("tokenizer", tokenizer)
    return given
