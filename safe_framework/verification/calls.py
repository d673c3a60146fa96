"""The calls of a certificate: their inputs, their kinds, and the ways to be off in them.

Where the caller gives no inputs, they are ordinary random tokens and made-up frames.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.modality import Modality
from safe_framework.core.model import SafeModel
from safe_framework.core.special_tokens import special_ids, vocabulary_size
from safe_framework.interfaces.types import FRAMES, FRAMES_MASK, FROM, IGNORED, PRESENT
from safe_framework.verification.outcome import Mode

ROWS, LENGTH, ANSWER, PADDING, FRAME_COUNT = 2, 8, 4, 3, 16
NEW_TOKENS = 4
_TOKEN_IDS = ("input_ids", "decoder_input_ids")

Batch = Mapping[str, Any]
Level = Literal["quick", "full"]


def plain_batch(base: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Random ordinary tokens, a few rows of one length."""
    batch = {"input_ids": random_tokens(base, (ROWS, LENGTH), seed=1).to(device)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return batch | decoder_tokens(base, ROWS, device)


def decoder_tokens(base: nn.Module, rows: int, device: torch.device) -> dict[str, Tensor]:
    """Ordinary tokens for the decoder of a base that encodes its text apart; else nothing."""
    if not decodes_separately(base):
        return {}
    return {"decoder_input_ids": random_tokens(base, (rows, ANSWER), seed=2).to(device)}


def pad_batch(base: nn.Module, batch: Batch, side: str) -> dict[str, Any]:
    """The batch made longer: by padding in its first row, by ordinary tokens in the others."""
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor):
        return dict(batch)
    width = (PADDING, 0) if side == "left" else (0, PADDING)
    new = slice(None, PADDING) if side == "left" else slice(-PADDING, None)
    longer = {
        key: _pad_length(value, width) if _is_per_token(key, value, ids) else value
        for key, value in batch.items()
    }
    longer["input_ids"][:, new] = random_tokens(base, (len(ids), PADDING), seed=3).to(ids.device)
    longer["input_ids"][0, new] = _padding_id(base)
    longer["attention_mask"] = pad(
        batch.get("attention_mask", torch.ones_like(ids)), width, value=1
    )
    longer["attention_mask"][0, new] = 0
    return longer


def with_other_tokens(base: nn.Module, batch: Batch, row: int) -> dict[str, Any]:
    """The batch with other ordinary tokens in one row; its special tokens stay."""
    special = torch.tensor(sorted(special_ids(base.config)) or [-1])
    changed = dict(batch)
    for seed, key in enumerate(_TOKEN_IDS):
        if not isinstance(ids := batch.get(key), Tensor):
            continue
        keep = torch.isin(ids[row].cpu(), special).to(ids.device)
        drawn = random_tokens(base, tuple(ids[row].shape), seed=10 + seed).to(ids.device)
        changed[key] = ids.clone()
        changed[key][row] = torch.where(keep, ids[row], drawn)
    return changed


def count_rows(batch: Batch) -> int:
    """How many rows a call with this batch has."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    return len(batch.get("input_ids", tensors[0]))


def first_row(batch: Batch) -> dict[str, Any]:
    """The first row alone."""
    rows = count_rows(batch)
    return {
        key: value[:1] if isinstance(value, Tensor) and len(value) == rows else value
        for key, value in batch.items()
    }


def _labels(batch: Batch, unscored: Collection[int]) -> Tensor | None:
    """The batch's own tokens, to be predicted; -100 in place of the unscored ones."""
    ids: Tensor | None = batch.get("decoder_input_ids", batch.get("input_ids"))
    if ids is None or not unscored:
        return ids
    hidden = torch.isin(ids, torch.tensor(sorted(unscored), device=ids.device))
    return ids.masked_fill(hidden, IGNORED)


def prompt_only(batch: Batch) -> dict[str, Any]:
    """The batch as ``generate`` takes it: without what is to be generated."""
    return {k: v for k, v in batch.items() if k != "labels" and not k.startswith("decoder_")}


def made_up_samples(name: str, modality: Modality, rows: int, device: torch.device) -> Batch:
    """Random finished frames of a modality for each row, the last one of them masked."""
    generator = torch.Generator().manual_seed(len(name))
    values = torch.randn(rows, FRAME_COUNT, modality.encoder.dim, generator=generator)
    mask = torch.ones(rows, FRAME_COUNT, dtype=torch.bool)
    mask[0, -1] = False
    kinds = (p.dtype for p in modality.projector.parameters() if p.is_floating_point())
    # The text is made up too, and has no place of a sample.
    place = torch.full((rows,), LENGTH // 2, device=device)
    return {
        **({f"{name}__{FROM}": place} if modality.attend == "after" else {}),
        f"{name}__{PRESENT}": torch.ones(rows, dtype=torch.bool, device=device),
        f"{name}__{FRAMES}": values.to(device, next(kinds, torch.float32)),
        f"{name}__{FRAMES_MASK}": mask.to(device),
    }


def with_two_samples(samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each row's sample twice, in slots; a modality whose rows have several already stays so."""
    present = {key: value for key, value in samples.items() if key.endswith(f"__{PRESENT}")}
    single = {key.partition("__")[0] for key, value in present.items() if value.ndim == 1}
    return {
        key: torch.stack([value, value], dim=1)
        if key.partition("__")[0] in single and not key.endswith(f"__{FROM}")
        else value
        for key, value in samples.items()
    }


def _is_per_token(key: str, value: Any, ids: Tensor) -> bool:
    plain = isinstance(value, Tensor) and not key.startswith("decoder_")
    return plain and value.shape[:2] == ids.shape


def _pad_length(value: Tensor, width: tuple[int, int], fill: int = 0) -> Tensor:
    """A tensor (batch, length, ...) padded along its length."""
    return pad(value, (0, 0) * (value.ndim - 2) + width, value=fill)


def random_tokens(base: nn.Module, shape: tuple[int, ...], seed: int) -> Tensor:
    """Ids that are no special token, from the first half of the vocabulary."""
    size = vocabulary_size(base)
    ordinary = torch.ones(size, dtype=torch.bool)
    ordinary[[number for number in special_ids(base.config) if 0 <= number < size]] = False
    ids = ordinary.nonzero().flatten()
    ids = ids[: max(len(ids) // 2, 1)]
    generator = torch.Generator().manual_seed(seed)
    return ids[torch.randint(len(ids), shape, generator=generator)]


def _padding_id(base: nn.Module) -> int:
    named = getattr(base.config, "pad_token_id", None)
    return named if type(named) is int and 0 <= named < vocabulary_size(base) else 0


@attrs.frozen
class Call:
    """One kind of call.

    Attributes:
        name: for messages.
        method: of the base.
        batch: which batch it is given.
        options: further keyword arguments.
        mode: of gradients.
        labels: whether its tokens are also what it is asked to predict.
        single_row: whether it takes one row only.
    """

    name: str
    method: Literal["forward", "generate"]
    batch: Literal["plain", "left", "right"] = "plain"
    options: Mapping[str, Any] = attrs.field(factory=dict)
    mode: Mode = "no_grad"
    labels: bool = False
    single_row: bool = False

    def inputs(
        self, batches: Mapping[str, Batch], unscored: Collection[int] = ()
    ) -> dict[str, Any]:
        """The keyword arguments of the base.

        Args:
            batches: by name; ``"single"`` is that of a call that takes one row.
            unscored: ids that no loss looks at, such as those that stand for a picture.
        """
        batch = dict(batches["single" if self.single_row else self.batch])
        if self.method == "generate":
            return prompt_only(batch) | {**self.options}
        if self.labels and "labels" not in batch:
            batch["labels"] = _labels(batch, unscored)
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
    _generate("assisted by its own prompt", {"prompt_lookup_num_tokens": 2}, single_row=True),
)


OffMethod = Callable[[SafeModel, dict[str, Tensor]], Any]
"""Given a model and samples, a block that yields arguments with which every modality is off."""


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
    yield with_two_samples(samples) | {"gate": torch.zeros(count_rows(samples))}


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
        rows, device = count_rows(samples), samples[f"{name}__{PRESENT}"].device
        made_up |= made_up_samples(name, model.modality(name), rows, device)
    yield {
        key: torch.zeros_like(value) if key.endswith(FRAMES_MASK) else value
        for key, value in made_up.items()
    }


OFF_METHODS: Mapping[str, OffMethod] = {
    "not given": _not_given,
    "gate 0": _gate_zero,
    "gate 0 in the call": _call_gate_zero,
    "off()": _off,
    "gate 0 on each row": _row_gates_zero,
    "absent on each row": _absent,
    "every token masked": _masked,
}
PER_ROW_METHODS = ("gate 0 on each row", "absent on each row", "every token masked")
"""The ways in which the model must look at tensors before it knows that everything is off."""


def calls_to_compare(level: Level) -> list[tuple[Call, list[str]]]:
    """Each call with the ways to compare: all, or in turn so that every call and way occurs."""
    names = list(OFF_METHODS)
    if level == "full":
        return [(call, names) for call in CALLS]
    whole = (FORWARD, GREEDY)
    return [
        (call, names if call in whole else [names[number % len(names)]])
        for number, call in enumerate(CALLS)
    ]
