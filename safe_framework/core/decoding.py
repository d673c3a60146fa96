"""Decoding whose steps a caller takes, so that rows may join a batch between them and leave it.

Each prompt is read in a call of its own, so that nothing of it depends on who else is answered. A
step then feeds each row's newest token: rows lie in one cache, padded on the left. A row's samples
were encoded when its prompt was read, and their memory goes with it.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.call import Gate, ModelCall
from safe_framework.core.injection import ActiveModality
from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.markers.call import prepare_call
from safe_framework.interfaces.types import Memory

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel

Shape = tuple[Any, ...]

_ONE_TOKEN = {
    "max_new_tokens": 1, "do_sample": False, "num_beams": 1, "use_cache": True,
    "return_dict_in_generate": True, "output_logits": True, "output_scores": False,
}  # fmt: skip


@attrs.frozen(eq=False)
class ReadPrompt:
    """A prompt that was read: what may follow it, and all that its answer depends on.

    Attributes:
        logits: of the token that follows, (vocabulary,), float32.
        cache: keys and values of the prompt, of one row.
        mask: 0 where nothing may look, (columns,).
        modalities: that are on, each with its one row; empty for the base itself.
    """

    logits: Tensor
    cache: Any
    mask: Tensor
    modalities: Sequence[ActiveModality]

    @property
    def shape(self) -> Shape:
        """What rows must have in common to be decoded together: the base's own share nothing."""
        return tuple(map(shape_of, self.modalities))

    @property
    def joins(self) -> bool:
        """Whether its row may lie in a cache with others.

        A cache that keeps a window or a state has no columns to pad, and some bases put more into
        it than the text has.
        """
        return has_plain_cache(self.cache) and self.cache.get_seq_length() == len(self.mask)


def has_plain_cache(cache: Any) -> bool:
    """Whether a cache holds the keys and values of every position, and nothing else."""
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", None) or ()
    return bool(layers) and all(
        type(layer) is DynamicLayer and layer.is_initialized for layer in layers
    )


def decodes_in_steps(base: nn.Module) -> bool:
    """Whether a base says nothing by which its rows could not be decoded together.

    An encoder-decoder reads its prompt elsewhere, and a base that counts positions in several
    dimensions keeps where a picture moved them.
    """
    inner = [base, getattr(base, "model", None)]
    return not decodes_separately(base) and not any(hasattr(one, "rope_deltas") for one in inner)


@torch.no_grad()
def read_prompt(model: SafeModel, batch: Mapping[str, Any], gate: Gate | None = None) -> ReadPrompt:
    """Read the prompt of one row, by the base's own ``generate``.

    Args:
        model: in evaluation mode.
        batch: of one row, as the model's processor makes it, on the base's device.
        gate: strength for this row, as of a call.
    """
    own, call = model._prepare((), batch, gate)
    given = {**own, **_ONE_TOKEN, "pad_token_id": model.processor.padding}
    out = call.generate((), given)
    mask = _mask_of(call, own)
    extra = out.past_key_values.get_seq_length() - len(mask)
    if extra == 1 and has_plain_cache(out.past_key_values):
        out.past_key_values.crop(-1)
    return ReadPrompt(out.logits[0][0].float(), out.past_key_values, mask, call.modalities)


def _mask_of(call: ModelCall, inputs: Mapping[str, Any]) -> Tensor:
    """The mask of the text as the base was given it, without markers of what is off."""
    generate: Any = call.base.generate
    given = prepare_call(generate, (), inputs, call.markers, call.modalities, lambda: 0).inputs
    ids = given["input_ids"]
    mask: Tensor = given.get("attention_mask", torch.ones_like(ids))
    return mask[0]


class DecodingBatch:
    """Rows of one shape that are decoded together.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: SafeModel) -> None:
        self.model = model
        self._cache: Any = None
        self._mask = torch.empty(0, 0, dtype=torch.long)
        self._call: ModelCall | None = None
        self._modalities: Sequence[ActiveModality] = ()
        self._takes_positions = "position_ids" in inspect.signature(model.base.forward).parameters

    def __len__(self) -> int:
        return len(self._mask)

    def join(self, prompts: Sequence[ReadPrompt]) -> None:
        """Take the rows of prompts behind those that are there; their caches are used up.

        Args:
            prompts: of the shape of all others.
        """
        for prompt in prompts:
            mask, modalities = prompt.mask[None], list(map(_everywhere, prompt.modalities))
            if not len(self):
                self._cache, self._mask, self._modalities = copied(prompt.cache), mask, modalities
                continue
            pairs = zip(self._modalities, modalities, strict=True)
            together = [joined(pair) for pair in pairs]
            width = max(self._mask.shape[1], mask.shape[1])
            self._cache = joined_caches(self._cache, prompt.cache, width)
            self._mask = torch.cat([_wide(self._mask, width), _wide(mask, width)])
            self._modalities = together
        self._call = None

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and the columns that are then nobody's."""
        if len(rows) == len(self):
            return
        if not rows:
            self._cache, self._mask = None, self._mask[:0]
            self._modalities, self._call = (), None
            return
        index = torch.tensor(rows, device=self._mask.device)
        mask = self._mask[index]
        unused = int(mask.any(0).int().argmax())
        self._mask = mask[:, unused:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[index, :, unused:].contiguous()
            layer.values = layer.values[index, :, unused:].contiguous()
        self._modalities = [_chosen(one, index) for one in self._modalities]
        self._call = None

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each row's newest token; logits of what follows, (rows, vocabulary), float32.

        Args:
            tokens: one for each row, in the order in which they joined.
        """
        ids = torch.tensor(tokens, device=self._mask.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": self._mask,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        if self._takes_positions:
            inputs["position_ids"] = self._mask.sum(1, keepdim=True) - 1
        if self._call is None:
            self._call = self.model._call(self._modalities)
        out = self._call.forward((), inputs)
        self._cache = out.past_key_values
        logits: Tensor = out.logits[:, -1].float()
        return logits


def copied(cache: Any) -> Any:
    """A cache of the same keys and values, which may grow by itself."""
    from transformers import DynamicCache

    found: Any = DynamicCache()
    for number, layer in enumerate(cache.layers):
        found.update(layer.keys, layer.values, number)
    return found


def joined_caches(one: Any, other: Any, width: int) -> Any:
    """The rows of two caches in one of ``width`` columns, padded on the left."""
    from transformers import DynamicCache

    found: Any = DynamicCache()
    for number, (first, second) in enumerate(zip(one.layers, other.layers, strict=True)):
        keys = torch.cat([_wide_states(first.keys, width), _wide_states(second.keys, width)])
        values = torch.cat([_wide_states(first.values, width), _wide_states(second.values, width)])
        found.update(keys, values, number)
    return found


def _wide(mask: Tensor, width: int) -> Tensor:
    return nn.functional.pad(mask, (width - mask.shape[1], 0))


def _wide_states(states: Tensor, width: int) -> Tensor:
    return nn.functional.pad(states, (0, 0, width - states.shape[2], 0))


def _everywhere(active: ActiveModality) -> ActiveModality:
    """A modality as it acts behind a prompt: on every token."""
    return attrs.evolve(active, attend="all", first=None, acting=None, tokens=None)


def shape_of(one: ActiveModality) -> Shape:
    """What rows must have in common for one modality to act on them together."""
    tensors = tuple((key, *t.shape[1:]) for key, t in one.memory.tensors.items())
    return one.name, tuple(one.memory.mask.shape[1:]), tensors


def joined(calls: Sequence[ActiveModality]) -> ActiveModality:
    """The rows of several calls of one modality in one, each with its own memory.

    Args:
        calls: of one shape; at least one.
    """
    memories = [one.memory for one in calls]
    tensors = {key: torch.cat([m.tensors[key] for m in memories]) for key in memories[0].tensors}
    starts = itertools.accumulate((one.batch for one in calls), initial=0)
    rows = [one.rows + start for one, start in zip(calls, starts, strict=False)]
    return attrs.evolve(
        calls[0],
        memory=Memory(tensors, torch.cat([m.mask for m in memories])),
        rows=torch.cat(rows),
        gates=torch.cat([one.gates for one in calls]),
        batch=sum(one.batch for one in calls),
    )


def _chosen(one: ActiveModality, index: Tensor) -> ActiveModality:
    at = index.to(one.rows.device)
    rows = torch.arange(len(index), device=one.rows.device)
    gates = one.gates[at.to(one.gates.device)]
    return attrs.evolve(one, memory=one.memory.rows(at), rows=rows, gates=gates, batch=len(index))
