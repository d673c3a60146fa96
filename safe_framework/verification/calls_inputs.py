"""What the calls of a certificate are given: ordinary words, and made-up frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from safe_framework.core.layer_discovery import decodes_apart
from safe_framework.core.modality import FRAMES, FRAMES_MASK, PRESENT, Modality
from safe_framework.core.special_tokens import special_ids, vocabulary_size

ROWS, LENGTH, ANSWER, PADDING, FRAME_COUNT = 2, 8, 4, 3, 16
_WORDS = ("input_ids", "decoder_input_ids")

Batch = Mapping[str, Any]


def plain_batch(base: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Random ordinary words, a few rows of one length."""
    batch = {"input_ids": _draw(base, (ROWS, LENGTH), seed=1).to(device)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if decodes_apart(base):
        batch["decoder_input_ids"] = _draw(base, (ROWS, ANSWER), seed=2).to(device)
    return batch


def padded(base: nn.Module, batch: Batch, side: str) -> dict[str, Any]:
    """The batch made longer: by padding in its first row, by ordinary words in the others."""
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor):
        return dict(batch)
    width = (PADDING, 0) if side == "left" else (0, PADDING)
    new = slice(None, PADDING) if side == "left" else slice(-PADDING, None)
    longer = {
        key: _lengthened(value, width) if _per_word(key, value, ids) else value
        for key, value in batch.items()
    }
    longer["input_ids"][:, new] = _draw(base, (len(ids), PADDING), seed=3).to(ids.device)
    longer["input_ids"][0, new] = _padding_id(base)
    longer["attention_mask"] = pad(
        batch.get("attention_mask", torch.ones_like(ids)), width, value=1
    )
    longer["attention_mask"][0, new] = 0
    return longer


def with_other_words(base: nn.Module, batch: Batch, row: int) -> dict[str, Any]:
    """The batch with other ordinary words in one row; its special tokens stay."""
    special = torch.tensor(sorted(special_ids(base.config)) or [-1])
    changed = dict(batch)
    for seed, key in enumerate(_WORDS):
        if not isinstance(ids := batch.get(key), Tensor):
            continue
        keep = torch.isin(ids[row].cpu(), special).to(ids.device)
        drawn = _draw(base, tuple(ids[row].shape), seed=10 + seed).to(ids.device)
        changed[key] = ids.clone()
        changed[key][row] = torch.where(keep, ids[row], drawn)
    return changed


def rows_of(batch: Batch) -> int:
    """How many rows a call with this batch has."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    return len(batch.get("input_ids", tensors[0]))


def one_row(batch: Batch) -> dict[str, Any]:
    """The first row alone."""
    rows = rows_of(batch)
    return {
        key: value[:1] if isinstance(value, Tensor) and len(value) == rows else value
        for key, value in batch.items()
    }


def prompt(batch: Batch) -> dict[str, Any]:
    """The batch as ``generate`` takes it: without what is to be generated."""
    return {k: v for k, v in batch.items() if k != "labels" and not k.startswith("decoder_")}


def made_up_samples(name: str, modality: Modality, rows: int, device: torch.device) -> Batch:
    """Random finished frames of a modality for each row, the last one of them masked."""
    generator = torch.Generator().manual_seed(len(name))
    values = torch.randn(rows, FRAME_COUNT, modality.encoder.dim, generator=generator)
    mask = torch.ones(rows, FRAME_COUNT, dtype=torch.bool)
    mask[0, -1] = False
    kinds = (p.dtype for p in modality.projector.parameters() if p.is_floating_point())
    return {
        f"{name}__{PRESENT}": torch.ones(rows, dtype=torch.bool, device=device),
        f"{name}__{FRAMES}": values.to(device, next(kinds, torch.float32)),
        f"{name}__{FRAMES_MASK}": mask.to(device),
    }


def _per_word(key: str, value: Any, ids: Tensor) -> bool:
    plain = isinstance(value, Tensor) and not key.startswith("decoder_")
    return plain and value.shape[:2] == ids.shape


def _lengthened(value: Tensor, width: tuple[int, int], fill: int = 0) -> Tensor:
    """A tensor (batch, length, ...) with more places along its length."""
    return pad(value, (0, 0) * (value.ndim - 2) + width, value=fill)


def _draw(base: nn.Module, shape: tuple[int, ...], seed: int) -> Tensor:
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
