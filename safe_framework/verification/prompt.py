"""L8: up to where its modalities act, a prompt's hidden states, keys and values are the base's.

Asked of a bench while the adapters answer with noise. Every layer's input and output is recorded
as the base calls it, in one piece, in chunks, for beams or again for each token, and a cache is
compared as it is in the end. A base that itself computes a position from later ones cannot have
the law.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.layer_hooks import get_hidden_states, registered
from safe_framework.interfaces.types import FROM
from safe_framework.utils.tensors import bitwise_equal
from safe_framework.verification.bench import Bench, noisy_adapters
from safe_framework.verification.calls import CALLS, Call, random_tokens
from safe_framework.verification.certificate import Law, law_result, not_applicable
from safe_framework.verification.laws import where_rows_mix
from safe_framework.verification.outcome import Outcome, capture_outcome

LAW = ("L8", "The prompt is the base's")
_NAMES = (
    "forward", "forward, padded left", "forward, padded right", "greedy", "greedy, padded left",
    "greedy without a cache", "2 beams", "static cache", "prefill in chunks",
)  # fmt: skip
_CALLS = tuple(call for call in CALLS if call.name in _NAMES)
_FORWARDS = tuple(call for call in _CALLS if call.method == "forward")
_CACHE = "past_key_values"
_CROSS = ("encoder_last_hidden_state", "cross_attention_cache")
"""What a decoder is given of the prompt, by a part of its path in what a call returns."""


def prompt_is_base(bench: Bench) -> Law:
    """The verdict on L8."""
    everywhere = [name for name, attend in bench.model.attends.items() if attend == "all"]
    if everywhere:
        names = " and ".join(f"`{name}`" for name in everywhere)
        return not_applicable(*LAW, f'with `attend = "all"`, {names} acts on the prompt too')
    if mixed := where_rows_mix(bench) or _where_positions_mix(bench):
        return not_applicable(*LAW, f"the base computes positions together: {mixed}")
    seen = _Compared()
    with noisy_adapters(bench.model):
        findings = [
            found for call in bench.supported(*_CALLS) for found in _of_call(bench, call, seen)
        ]
    if not seen.numbers:
        return not_applicable(*LAW, "nothing stands before the positions at which the senses act")
    return law_result(*LAW, seen.detail, findings)


@attrs.define(eq=False)
class _Compared:
    """How much was compared.

    Attributes:
        calls: names of them.
        states: hidden states of a layer, in a call of it.
        cached: tensors of keys or values.
        numbers: in all of these.
    """

    calls: list[str] = attrs.field(factory=list)
    states: int = 0
    cached: int = 0
    numbers: int = 0

    @property
    def detail(self) -> str:
        """The same in words."""
        return (
            f"{self.numbers:,} numbers of the prompts of {len(self.calls)} calls: {self.states} "
            f"hidden states of layers, and {self.cached} keys and values"
        )


@attrs.frozen(eq=False)
class _Run:
    """What one call gave, and what entered and left each layer in it.

    Attributes:
        outcome: what it returned.
        states: by layer and side, one for each time it was called, (batch, length, ...).
    """

    outcome: Outcome
    states: Mapping[str, list[Tensor]]


def _of_call(bench: Bench, call: Call, seen: _Compared) -> Iterator[str]:
    """What of the prompt is not the base's in one call."""
    with bench.unwrapped(), _recorded(bench) as states:
        expected = _Run(bench.run_base(call), states)
    with _recorded(bench) as states:
        found = _Run(bench.run_on(call), states)
    if found.outcome.error:
        yield f"{bench.name(call)} with the senses on raises {found.outcome.error}"
        return
    spans = _prompt_spans(bench, call)
    seen.calls.append(call.name)
    for what, one, other in _pairs(bench, call, found, expected, spans):
        if what.startswith(_CACHE):
            seen.cached += 1
        else:
            seen.states += 1
        seen.numbers += other.numel()
        if not bitwise_equal(one.contiguous(), other.contiguous()):
            yield f"{bench.name(call)}: {what} of the prompt is not the base's"
            return


def _pairs(
    bench: Bench, call: Call, found: _Run, expected: _Run, spans: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What both have of the prompt, with its name, row by row."""
    separate = decodes_separately(bench.model.base)
    length = int(bench.batches[call.batch]["input_ids"].shape[1])
    for name, states in {} if separate else expected.states.items():
        for at, one, other in _prompt_parts(found.states[name], states, length):
            yield from _rows(name, one, other, spans - at)
    for path, leaf in expected.outcome.leaves.items():
        here = found.outcome.leaves.get(path)
        if not (isinstance(leaf, Tensor) and isinstance(here, Tensor) and leaf.shape == here.shape):
            continue
        if separate and any(part in path for part in _CROSS):
            yield path, here, leaf
        elif not separate and _holds_columns(path, leaf, bench.rows, _read(call, length)):
            yield from _rows(path, here.transpose(1, -2), leaf.transpose(1, -2), spans)


def _read(call: Call, length: int) -> int:
    """How many columns a cache holds at least once a call is done."""
    return length + (call.options["max_new_tokens"] - 1 if call.method == "generate" else 0)


def _holds_columns(path: str, leaf: Tensor, rows: int, columns: int) -> bool:
    """Whether a part of a cache is keys or values, of (batch, heads, columns, dim)."""
    kept = path.startswith(_CACHE) and path.endswith(("keys", "values"))
    return kept and leaf.ndim == 4 and len(leaf) % rows == 0 and leaf.shape[2] >= columns


def _prompt_parts(
    found: list[Tensor], expected: list[Tensor], length: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """A layer's states where it was given the prompt or a part of it, with its first column."""
    read = 0
    for one, other in zip(found, expected, strict=False):
        columns = other.shape[1]
        if one.shape != other.shape:
            return  # decoding went on with other tokens
        if read >= length and columns < length:
            continue  # a step of decoding
        yield read if read < length else 0, one, other
        read += columns


def _rows(
    name: str, one: Tensor, other: Tensor, spans: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of (batch, columns, ...), what lies in each row's span."""
    copies = len(other) // len(spans)
    for row, (begin, end) in enumerate(spans.clamp_min(0).repeat_interleave(copies, 0).tolist()):
        if begin < min(end, other.shape[1]):
            yield name, one[row, begin:end], other[row, begin:end]


def _prompt_spans(bench: Bench, call: Call) -> Tensor:
    """Each row's first real column, and the one at which the first sense acts, (batch, 2).

    What a base computes for padding, nobody reads: some let it see all of the text.
    """
    batch = bench.batches[call.batch]
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).cpu().int()
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    given = (bench.samples.get(f"{name}__{FROM}") for name in bench.model.modalities)
    first = torch.stack([last if one is None else one.cpu() for one in given]).amin(0)
    return torch.stack([mask.argmax(1), first], dim=1)


def _where_positions_mix(bench: Bench) -> str:
    """Where the base's prompt changes with what comes behind it; empty if nowhere."""
    if decodes_separately(bench.model.base):
        return ""
    for call in bench.supported(*_FORWARDS):
        spans = _prompt_spans(bench, call)
        batch = dict(bench.batches[call.batch])
        ids = batch["input_ids"].clone()
        other = random_tokens(bench.model.base, tuple(ids.shape), seed=21).to(ids.device)
        behind = torch.arange(ids.shape[1])[None] >= spans[:, 1:]
        batch["input_ids"] = torch.where(behind.to(ids.device), other, ids)
        runs = list[_Run]()
        with bench.unwrapped():
            for given in (bench.batches, {**bench.batches, call.batch: batch}):
                with _recorded(bench) as states:
                    inputs = bench.inputs(call, given)
                    outcome = capture_outcome(bench.base_method(call), inputs, call.mode)
                runs.append(_Run(outcome, states))
        before, after = runs
        for what, one, two in _pairs(bench, call, before, after, spans):
            if not bitwise_equal(one.contiguous(), two.contiguous()):
                return f"in {call.name}, with another last word, {what} of the prompt is another"
    return ""


@contextmanager
def _recorded(bench: Bench) -> Iterator[dict[str, list[Tensor]]]:
    """Collects what enters and leaves each layer, batch and length in front."""
    stack, states = bench.model.stack, dict[str, list[Tensor]]()

    def keep(name: str, value: Any) -> None:
        """Keep a copy."""
        if isinstance(value, Tensor):
            moved = value.detach().movedim((stack.layout.batch, stack.layout.length), (0, 1))
            states.setdefault(name, []).append(moved.clone())

    def enter(number: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Keep a layer's input, behind what the modalities did to it."""
        keep(f"the input of layer {number}", get_hidden_states(args, kwargs))

    def leave(number: int, module: nn.Module, args: Any, out: Any) -> None:
        """Keep a layer's output."""
        keep(f"the output of layer {number}", out[0] if isinstance(out, tuple) else out)

    layers = list(enumerate(stack.of(bench.model.base)))
    entering = (
        layer.register_forward_pre_hook(partial(enter, number), with_kwargs=True)
        for number, layer in layers
    )
    leaving = (layer.register_forward_hook(partial(leave, number)) for number, layer in layers)
    with registered(*entering, *leaving):
        yield states
