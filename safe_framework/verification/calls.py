"""The calls of a certificate, and the ways in which a sense can be off in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from safe_framework.core.modality import FRAMES_MASK, PRESENT
from safe_framework.core.model import SafeModel
from safe_framework.verification.calls_inputs import (
    Batch,
    made_up_samples,
    one_row,
    prompt,
    rows_of,
)
from safe_framework.verification.outcome import Mode

Level = Literal["quick", "full"]
NEW_TOKENS = 4


@attrs.frozen
class Call:
    """One kind of call.

    Attributes:
        name: for messages.
        method: of the base.
        batch: which batch it is given.
        options: further keyword arguments.
        mode: of gradients.
        labels: whether its words are also what it is asked to predict.
        alone: whether it takes one row only.
    """

    name: str
    method: Literal["forward", "generate"]
    batch: Literal["plain", "left", "right"] = "plain"
    options: Mapping[str, Any] = attrs.field(factory=dict)
    mode: Mode = "no_grad"
    labels: bool = False
    alone: bool = False

    def inputs(self, batches: Mapping[str, Batch]) -> dict[str, Any]:
        """The keyword arguments of the base."""
        batch = dict(batches[self.batch])
        if self.alone:
            batch = one_row(batch)
        if self.method == "generate":
            return prompt(batch) | {**self.options}
        if self.labels and "labels" not in batch:
            batch["labels"] = batch.get("decoder_input_ids", batch.get("input_ids"))
        return batch | {**self.options}


def _forward(name: str, **given: Any) -> Call:
    return Call(name, "forward", **given)


def _generate(name: str, options: Mapping[str, Any] | None = None, **given: Any) -> Call:
    fixed: dict[str, Any] = {
        "num_beams": 1,
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    return Call(
        name, "generate", options=fixed | {"do_sample": False} | dict(options or {}), **given
    )


FORWARD = _forward("forward")
GREEDY = _generate("greedy")
UNCACHED = _generate("greedy without a cache", {"use_cache": False})

CALLS: tuple[Call, ...] = (
    FORWARD,
    _forward("forward, padded left", batch="left", mode="inference"),
    _forward("forward, padded right", batch="right", mode="grad"),
    _forward("loss", batch="right", labels=True),
    _forward("loss with gradients", mode="grad", labels=True),
    _forward("hidden states", options={"output_hidden_states": True}, mode="inference"),
    _forward("forward without a cache", batch="left", options={"use_cache": False}),
    GREEDY,
    _generate("greedy, padded left", batch="left", mode="inference"),
    UNCACHED,
    _generate("sampled", {"do_sample": True, "num_return_sequences": 2}, batch="left", mode="grad"),
    _generate("2 beams", {"num_beams": 2, "num_return_sequences": 2}, batch="left"),
    _generate("4 beams", {"num_beams": 4}, mode="inference"),
    _generate("static cache", {"cache_implementation": "static", "disable_compile": True}),
    _generate("prefill in chunks", {"prefill_chunk_size": 4}, mode="inference"),
    _generate("assisted by its own prompt", {"prompt_lookup_num_tokens": 2}, alone=True),
)


Way = Callable[[SafeModel, dict[str, Tensor]], Any]
"""Given a model and samples, a block within which what it yields is no reason to hear."""


@contextmanager
def _not_given(model: SafeModel, samples: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    yield {}


@contextmanager
def _gate_zero(model: SafeModel, samples: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    kept = model.gates
    model.set_gate(0.0)
    try:
        yield samples
    finally:
        for name, gate in kept.items():
            model.set_gate(gate, name)


@contextmanager
def _call_gate_zero(model: SafeModel, samples: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    yield samples | {"gate": 0.0}


@contextmanager
def _row_gates_zero(model: SafeModel, samples: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    yield samples | {"gate": torch.zeros(rows_of(samples))}


@contextmanager
def _off(model: SafeModel, samples: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    everything = list(model.modalities) if model.base_change is not None else []
    with model.off(*everything):  # unnamed, it would be the original of a changed base
        yield samples


@contextmanager
def _absent(model: SafeModel, samples: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    yield {
        key: torch.zeros_like(value) if key.endswith(f"__{PRESENT}") else value
        for key, value in samples.items()
    }


@contextmanager
def _masked(model: SafeModel, samples: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    made_up: dict[str, Tensor] = {}
    for name in model.modalities:
        rows, device = rows_of(samples), samples[f"{name}__{PRESENT}"].device
        made_up |= made_up_samples(name, model.modality(name), rows, device)
    yield {
        key: torch.zeros_like(value) if key.endswith(FRAMES_MASK) else value
        for key, value in made_up.items()
    }


WAYS: Mapping[str, Way] = {
    "not given": _not_given,
    "gate 0": _gate_zero,
    "gate 0 in the call": _call_gate_zero,
    "off()": _off,
    "gate 0 on each row": _row_gates_zero,
    "absent on each row": _absent,
    "every token masked": _masked,
}
LOOKS_AT_ROWS = ("gate 0 on each row", "absent on each row", "every token masked")
"""The ways in which the model must look at tensors before it knows that nothing is to be heard."""


def chosen(level: Level) -> list[tuple[Call, list[str]]]:
    """Each call with the ways to compare: all, or in turn so that every call and way occurs."""
    names = list(WAYS)
    if level == "full":
        return [(call, names) for call in CALLS]
    whole = (FORWARD, GREEDY)
    return [
        (call, names if call in whole else [names[number % len(names)]])
        for number, call in enumerate(CALLS)
    ]
