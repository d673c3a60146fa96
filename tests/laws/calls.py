"""What one call of a base returns, as a list of tensors to compare bit by bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.base_model import freeze
from safe_framework.utils.tensors import bitwise_equal

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "grad": nullcontext,
}
DECODING: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "uncached": {"do_sample": False, "use_cache": False},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 2, "num_return_sequences": 2},
}


def copy_of(base: nn.Module) -> nn.Module:
    """The same base, frozen as the core freezes it, before anything was attached."""
    return freeze(copy.deepcopy(base))


def forward_tensors(call: Callable[..., Any], batch: dict[str, Tensor]) -> list[Tensor]:
    """Loss, logits and every hidden state of one forward call."""
    labels = batch.get("decoder_input_ids", batch["input_ids"])
    out = call(**{"labels": labels, **batch}, output_hidden_states=True)
    states = out.get("decoder_hidden_states") or out.hidden_states
    return [out.loss, out.logits, *states]


def generate_tensors(
    call: Callable[..., Any], batch: dict[str, Tensor], options: dict[str, Any]
) -> list[Tensor]:
    """Tokens and scores of one seeded ``generate`` call."""
    answer = ("decoder_input_ids", "labels")
    prompt = {key: value for key, value in batch.items() if key not in answer}
    torch.manual_seed(11)
    out = call(
        **prompt,
        **options,
        max_new_tokens=4,
        min_new_tokens=4,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return [out.sequences, *out.logits]


def all_same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two calls gave the same bits everywhere."""
    assert first
    return len(first) == len(second) and all(map(bitwise_equal, first, second))
