"""What a call costs whose gate a relevance head decides: closed against the base, open against 1.

The sample is given as it is, so that an open call pays its encoder and a closed one does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from speed_model import MODALITY, Calls
from speed_rows import Row, amount, ratio
from speed_turns import compare, spent, taking_turns

from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import AUTO, RelevanceHead

CLOSED, STEPS = 1.02, 1.0
"""Targets: a closed call's time by the base's, and the steps of decoding that opening costs."""
ANSWER = 16
"""Words of an answer."""


@contextmanager
def decided(model: SafeModel) -> Iterator[RelevanceHead]:
    """Within the block, a head of random weights, as large as a run's; ``attend = "answer"``."""
    width, modality = model.stack.hidden_size, model.modality(MODALITY)
    queries, weight = torch.randn(2, 64, width, generator=torch.Generator().manual_seed(0))
    flat, layer = torch.zeros(width), model.stack.count // 4
    head = RelevanceHead(flat, flat + 1, queries, weight, 0.0, layer=layer, columns=32)
    kept, modality.attend = modality.attend, "answer"
    model.set_relevance(MODALITY, head)
    try:
        yield head
    finally:
        model.set_relevance(MODALITY, None)
        modality.attend = kept


def auto_rows(model: SafeModel, sample: Any, lengths: Sequence[int], rounds: int) -> list[Row]:
    """Whole calls, and their first word alone, at each length of the prompt."""
    prepared = model.modality(MODALITY).encoder.prepare([sample])
    given = {f"{MODALITY}__{key}": value for key, value in prepared.items()}
    given[f"{MODALITY}__present"] = torch.ones(1, dtype=torch.bool)
    rows = list[Row]()
    with decided(model) as head:
        for length in lengths:
            text = Calls(model, MODALITY, length, model.modality(MODALITY).projector).text
            for words in (1, ANSWER):
                fewer = max(5, rounds * 128 // max(length, 128))
                rows += _of_call(model, head, text, given, words, fewer)
    return rows


def _of_call(
    model: SafeModel, head: RelevanceHead, text: Any, given: Any, words: int, rounds: int
) -> list[Row]:
    options = {**text, "max_new_tokens": words, "min_new_tokens": words, "do_sample": False}
    base: Any = model.base.generate

    def timed(generate: Any, threshold: float = 0.0, **more: Any) -> Callable[[], float]:
        """Seconds of a core that a call takes, whatever else the machine does."""

        def call() -> float:
            """One."""
            head.threshold, start = threshold, spent()
            generate(**options, **more)
            seconds = spent() - start
            opened = [bool(gate.any()) for gate in model.last_gates.values()]
            if more.get("gate") == AUTO and opened != [threshold < 0]:
                raise RuntimeError("the head did not decide as its threshold says")
            return seconds

        return call

    arms = {
        "base": timed(base),
        "closed": timed(model.generate, math.inf, **given, gate=AUTO),
        "open": timed(model.generate, -math.inf, **given, gate=AUTO),
        "gate 1": timed(model.generate, **given, gate=1.0),
    }
    found = taking_turns(arms, rounds, warm_up=2)
    what = f"{text['input_ids'].shape[1]} tokens, then {words}"
    rows = [
        ratio(f"{what}, closed", "base", compare(found, "closed", "base"), CLOSED),
        ratio(f"{what}, open", "base", compare(found, "open", "base")),
        ratio(f"{what}, open", "gate 1", compare(found, "open", "gate 1")),
    ]
    if words > 1:
        step = _step(base, text)
        more = [
            (own - other) / step for own, other in zip(found["open"], found["gate 1"], strict=True)
        ]
        rows.append(amount(f"{what}, open beyond gate 1", more, "steps of decoding", STEPS))
    return rows


def _step(generate: Any, text: Any) -> float:
    """Seconds of a step of the base's decoding."""

    def taken(words: int) -> float:
        """Of an answer."""
        start = spent()
        generate(**text, max_new_tokens=words, min_new_tokens=words, do_sample=False)
        return spent() - start

    return (taken(ANSWER) - taken(1)) / (ANSWER - 1)
