"""The prompt's keys and values at every layer, computed once: a step runs the answer alone.

Where every modality acts on answers (law L8), nothing of a prompt before its last position depends
on a sample or on anything that trains, at any layer. What later positions read of it are its keys
and values at the layers from the first fused one on. They are stored for each distinct prompt, and
a step begins at the prompt's last position, as decoding does behind a cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.attend import answering
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import no_cache_option, on_device
from safe_framework.core.padding import pad_to_length
from safe_framework.core.prompt_rows import PromptRow, Rows
from safe_framework.interfaces.types import FROM
from safe_framework.training.compute.activation_cache import ActivationCaches, ActivationStore
from safe_framework.training.compute.base_properties import near
from safe_framework.training.compute.calls import ForwardCall
from safe_framework.training.compute.packing import can_pack
from safe_framework.utils.progress import ProgressCallback

_KEY, _VALUE = "key.", "value."


class PromptCache:
    """Lets calls on rows whose prompts are stored begin at the last position of each prompt.

    Args:
        model: about to be trained, in eval mode.
        caches: of the run, by which calls start at the first fused layer.
        prompts: of the task's rows, without their last position.
    """

    def __init__(self, model: SafeModel, caches: ActivationCaches, prompts: Rows) -> None:
        assert caches.prefix is not None
        self.model, self.caches, self.layer = model, caches, caches.prefix.layer
        self.names = answering(model.attends)
        self.store: ActivationStore | None = caches.store_of(
            [row for row in prompts if len(row)], self._computed, self._sizes(), "prompts"
        )

    @classmethod
    def tried(
        cls, model: SafeModel, caches: ActivationCaches | None, rows: Rows, starts: Sequence[int]
    ) -> PromptCache | None:
        """The cache of some rows' prompts, if calls that begin behind them give the same.

        Args:
            model: about to be trained, in eval mode.
            caches: of the run.
            rows: of the task, without those with pictures.
            starts: the last position of each row's prompt.
        """
        everywhere = any(attend != "answer" for attend in model.attends.values())
        if caches is None or caches.prefix is None or everywhere or not can_pack(model):
            return None
        plain = [(r, s) for r, s in zip(rows, starts, strict=True) if s and not r.images]
        if not plain:
            return None
        made = cls(model, caches, [PromptRow(row.ids[:start]) for row, start in plain])
        if made.store is None or not made._agrees(plain[:2]):
            return None
        return made

    def precompute(self, progress: ProgressCallback) -> None:
        """Compute what is missing."""
        assert self.store is not None
        self.store.precompute(self.store.rows, "reading prompts", progress)

    def behind_prompts(self, call: ForwardCall, rows: Rows) -> ForwardCall:
        """The call without its prompts but for their last positions; as it is, where one is new.

        Args:
            call: on these rows, padded on the right, from the first fused layer on.
            rows: of the call.
        """
        first = next((call.inputs.get(f"{name}__{FROM}") for name in self.names), None)
        if first is None or call.prefix_states is None or self.model.is_gradient_checkpointing:
            return call
        starts = first.tolist()
        heads = [PromptRow(row.ids[:start]) for row, start in zip(rows, starts, strict=True)]
        longer = [head for head in heads if len(head)]
        if call.pictures or self.store is None or not longer or not self.store.contains(longer):
            return call
        known = dict(zip(longer, self.store.of(longer), strict=True))
        nothing = {name: kept[:0] for name, kept in known[longer[0]].items()}
        width = max(len(row) - start for row, start in zip(rows, starts, strict=True))
        index = first[:, None] + torch.arange(width, device=first.device)  # (batch, width)
        inside = index < call.positions.shape[1]
        index = index.clamp_max(call.positions.shape[1] - 1)
        own = {key: call.inputs[key].gather(1, index) for key in ("input_ids", "attention_mask")}
        own["attention_mask"] = own["attention_mask"] * inside
        begun = {f"{name}__{FROM}": torch.zeros_like(first) for name in self.names}
        return attrs.evolve(
            call,
            inputs={**call.inputs, **own, **begun},
            positions=call.positions.gather(1, index) & inside,
            prefix_states=[
                state[start:] for state, start in zip(call.prefix_states, starts, strict=True)
            ],
            past=[known.get(head, nothing) for head in heads],
        )

    def _agrees(self, rows: Sequence[tuple[PromptRow, int]]) -> bool:
        """Whether rows give behind their prompts what they give whole, but for rounding."""
        texts, device = [row for row, _ in rows], self.model.device
        states = self.caches.task_texts(texts)
        if states is None:
            return False
        batch = self.caches.prompts.collate(texts, self.caches.pad)
        first = torch.tensor([start for _, start in rows])
        samples = self.caches.samples(len(rows)) | {f"{name}__{FROM}": first for name in self.names}
        inputs = on_device(batch | samples, device)
        columns = torch.arange(batch["input_ids"].shape[1])
        read = (columns >= first[:, None]) & batch["attention_mask"].bool()
        whole = ForwardCall(
            inputs, read.to(device), prefix_states=self.caches.prefix_states(states, texts)
        )
        cut = self.behind_prompts(whole, texts)
        if cut.past is None:
            return False
        try:
            with torch.no_grad():
                expected, given = self._logits(whole, inputs), self._logits(cut, with_past(cut))
            if expected.dtype == torch.float64:  # beside which adapters compute some in float32
                expected, given = expected.float(), given.float()
            return near(given, expected)
        except Exception:  # whatever a third-party base raises, its prompts are not left out
            return False

    def _logits(self, call: ForwardCall, inputs: Mapping[str, Any]) -> Tensor:
        assert call.prefix_states is not None
        with self.caches.start_from_prefix(call.prefix_states):
            out = self.model(**inputs, **no_cache_option(self.model.base))
        logits: Tensor = out.logits[call.positions]
        return logits

    def _computed(self, rows: Rows) -> dict[str, Tensor]:
        """Keys and values of some prompts, each (batch, length, heads, width of a head)."""
        inputs = on_device(self.caches.prompts.collate(rows, self.caches.pad), self.model.device)
        with self.model.off():
            layers = self.model(**inputs, use_cache=True).past_key_values.layers
        found = {}
        for number in range(self.layer, len(layers)):
            found[f"{_KEY}{number}"] = layers[number].keys.transpose(1, 2).contiguous()
            found[f"{_VALUE}{number}"] = layers[number].values.transpose(1, 2).contiguous()
        return found

    def _sizes(self) -> int:
        """Numbers that are kept of one position: as if each head had keys of its own."""
        return 2 * (self.model.stack.count - self.layer) * self.model.stack.hidden_size


def with_past(call: ForwardCall) -> dict[str, Any]:
    """A call's inputs, with what its prompts left: keys, values, their mask and positions."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    assert call.past is not None
    ids, mask = call.inputs["input_ids"], call.inputs["attention_mask"]
    lengths = torch.tensor([len(next(iter(row.values()))) for row in call.past])
    longest, layers = int(lengths.max()), dict[int, tuple[Tensor, Tensor]]()
    for name in call.past[0]:
        if name.startswith(_KEY):
            number = int(name.removeprefix(_KEY))
            keys, values = (
                _padded_left([row[f"{kind}{number}"] for row in call.past], longest).to(ids.device)
                for kind in (_KEY, _VALUE)
            )
            layers[number] = _in_autocast(keys), _in_autocast(values)
    lowest = min(layers)
    unread = layers[lowest][0].new_zeros(1).expand_as(layers[lowest][0])  # below, nothing runs
    cache = DynamicCache()
    for number in range(max(layers) + 1):
        keys, values = layers.get(number, (unread, unread))
        layer: Any = DynamicLayer()  # type: ignore[no-untyped-call]  # transformers' own is untyped
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    known = torch.arange(longest) >= longest - lengths[:, None]  # (batch, longest)
    positions = lengths[:, None] + torch.arange(ids.shape[1])  # (batch, width)
    return {
        **call.inputs,
        "past_key_values": cache,
        "attention_mask": torch.cat([known.to(mask), mask], dim=1),
        "position_ids": positions.to(ids.device),
    }


def _in_autocast(values: Tensor) -> Tensor:
    """In the type that a layer computes in now, beside whose own keys they will stand."""
    kind = values.device.type
    return values.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else values


def _padded_left(rows: Sequence[Tensor], longest: int) -> Tensor:
    """Keys of (length, heads, width) each, as (batch, heads, longest, width)."""
    flipped = [pad_to_length(row.flip(0)[None], longest) for row in rows]
    return torch.cat(flipped).flip(1).transpose(1, 2)
