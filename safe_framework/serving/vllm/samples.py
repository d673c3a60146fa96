"""From a request's sounds to what the worker is sent, and to the keys of vLLM's caches.

A sample takes no place in the text. It is told to vLLM as one at the prompt's last token, or, for
an adapter that acts everywhere, as one over all of the prompt: vLLM puts its digest into the key
of each block of the prefix cache that lies there or follows. Blocks before it are the base's own,
and are shared.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import mm_input
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange
from vllm.multimodal.parse import MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
)

from safe_framework.core.modality import Modality, checked_gate
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import AUTO, Strength, check_decidable
from safe_framework.data.audio import Waveform, resample
from safe_framework.errors import SafeError
from safe_framework.interfaces.samples import together
from safe_framework.serving.vllm.adapter import load_adapter, only_modality

KIND = "audio"
"""What vLLM calls a sound."""

GATE = "gate"
"""Of a request, in ``mm_processor_kwargs``; and of a sample on its way to the worker, NaN where a
relevance head is to decide."""

DECISION = "decision"
"""Of a sample on its way to the worker, where a relevance head is to decide: a number of its
own."""


@attrs.frozen(eq=False)
class PreparedSample:
    """A request's samples as the encoder takes them.

    Attributes:
        inputs: the modality's part of a batch of one row, without the ``NAME__`` prefix.
        decision: the number by which the worker will tell what a relevance head decided.
    """

    inputs: Mapping[str, Tensor]
    decision: int


class SampleItems(ProcessorBatchItems[Any]):  # type: ignore[misc]  # vLLM is not typed
    """The sounds of a request: arrays with their rates, or what was prepared of them."""


class SampleParser(MultiModalDataParser):  # type: ignore[misc]  # vLLM is not typed
    """Takes sounds as they came: the framework resamples them itself."""

    def _parse_audio_data(self, data: Any) -> SampleItems:
        return SampleItems(data if isinstance(data, list) else [data], KIND)


class AdapterInfo(BaseProcessingInfo):  # type: ignore[misc]  # vLLM is not typed
    """What vLLM asks about an adapter's samples."""

    @property
    def adapter(self) -> SafeModel:
        """The adapter, without its base's weights."""
        return load_adapter(self.get_hf_config().safe_adapter)

    @property
    def fingerprint(self) -> str:
        """What tells this adapter from every other."""
        found: str = self.get_hf_config().safe_fingerprint
        return found

    def get_data_parser(self) -> SampleParser:
        """What reads sounds."""
        return SampleParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """As many sounds as the server's own limit allows."""
        return {KIND: None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Any) -> Mapping[str, int]:
        """A sample is counted as one token of vLLM's budget."""
        return {KIND: 1}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """None of a processor of transformers'."""
        return {}


class AdapterDummies(BaseDummyInputsBuilder[AdapterInfo]):  # type: ignore[misc]  # vLLM is not typed
    """Sounds of no meaning, with which vLLM measures its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """No text stands for a sample."""
        return ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Any, mm_options: Any) -> Any:
        """A second of silence for each."""
        rate = only_modality(self.info.adapter).encoder.sampling_rate
        assert rate is not None
        return {KIND: [(np.zeros(rate, np.float32), rate)] * mm_counts.get(KIND, 0)}


class AdapterProcessor(BaseMultiModalProcessor[AdapterInfo]):  # type: ignore[misc]  # vLLM is not typed
    """Prepares a request's sounds; they are one item to vLLM, however many there are."""

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        return {name: MultiModalFieldConfig.batched(KIND) for name in hf_inputs}

    def _get_prompt_updates(self, *_: Any) -> Sequence[Any]:
        return []

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """What the worker is sent for a prompt and its sounds.

        Raises:
            VLLMValidationError: a sound or the gate cannot be used.
        """
        ids, items = list(inputs.prompt), inputs.mm_data_items.get(KIND)
        given = self.info.ctx.get_merged_mm_kwargs(inputs.hf_processor_mm_kwargs)
        try:
            gate = self._gate(given)
            prepared = self._prepared([] if items is None else items.get_all())
        except SafeError as error:
            raise VLLMValidationError(str(error), parameter=KIND) from error
        fields = dict(prepared.inputs)
        if gate == AUTO:
            # With it the digest is no other request's, nor are blocks of the prefix cache that
            # hold an answer: what was decided for one is not what was for another.
            fields[DECISION] = torch.tensor([prepared.decision])
        fields[GATE] = torch.tensor([math.nan if gate == AUTO else gate], dtype=torch.float64)
        everywhere = only_modality(self.info.adapter).attend == "all"
        first = 0 if everywhere else max(len(ids) - 1, 0)
        held = torch.zeros(max(len(ids), 1) - first, dtype=torch.bool)
        held[-1] = True
        return mm_input(
            prompt_token_ids=ids,
            mm_kwargs=MultiModalKwargsItems.from_hf_inputs(
                fields, self._get_mm_fields_config(fields, {})
            ),
            mm_hashes={KIND: [digest(self.info.fingerprint, fields)]},
            mm_placeholders={KIND: [PlaceholderRange(first, len(held), held)]},
        )

    def _gate(self, given: Mapping[str, Any]) -> Strength:
        """The strength of a request's samples."""
        if unknown := [name for name in given if name != GATE]:
            raise SafeError(f"`mm_processor_kwargs` has `{unknown[0]}`", hint=f"it takes `{GATE}`")
        modality = only_modality(self.info.adapter)
        gate = given.get(GATE, modality.gate)
        if isinstance(gate, Mapping):
            for name in gate:
                self.info.adapter.modality(name)  # or an error that names those there are
            gate = gate.get(modality.name, modality.gate)
        strength = checked_gate(gate)
        if strength == AUTO:
            check_can_decide(modality)
        return strength

    def _prepared(self, sounds: Sequence[Any]) -> PreparedSample:
        """A request's samples as the encoder takes them."""
        if not sounds:
            raise SafeError("there is no sound", hint="send one, or a request of text alone")
        if len(sounds) == 1 and isinstance(sounds[0], PreparedSample):
            found: PreparedSample = sounds[0]
            return found
        model = self.info.adapter
        modality = only_modality(model)
        rate = modality.encoder.sampling_rate
        assert rate is not None
        waves = [_waveform(one, number, rate) for number, one in enumerate(sounds)]
        made = model.processor.modality(modality.name, [together(waves)])
        inputs = {name.partition("__")[2]: values for name, values in made.items()}
        return PreparedSample(inputs, new_decision())


def new_decision() -> int:
    """The number of a decision that nobody has made."""
    return secrets.randbits(62)


def check_can_decide(modality: Modality) -> None:
    """Refuse to leave a gate to a head that is not there, or that could not be followed.

    Raises:
        SafeError: the modality has none, or acts before a prompt is read to its end.
    """
    check_decidable(modality)
    if modality.attend != "answer":
        raise SafeError(
            f'the gate of `{modality.name}` is "auto", and it acts `{modality.attend}` of the '
            "text: in vLLM a prompt is read once, and a relevance head decides at its end",
            hint="give the request a `gate` from 0 to 1",
        )


def _waveform(sound: Any, number: int, rate: int) -> Waveform:
    """A sound as vLLM decoded it, at the rate that the encoder takes.

    Raises:
        SafeError: it is none, or does not say its rate.
    """
    if not isinstance(sound, tuple) or len(sound) != 2:
        raise SafeError(
            f"sound {number} comes without its sampling rate",
            hint="give (array, rate); one that is only named by its `uuid` is not kept",
        )
    values, own = sound
    return resample(Waveform(np.asarray(values), round(own)), rate)


def digest(fingerprint: str, fields: Mapping[str, Tensor]) -> str:
    """The name of samples in vLLM's caches: of what they are, how loud, and whose.

    Args:
        fingerprint: of the adapter.
        fields: what the worker is sent, the gate too.
    """
    found = hashlib.sha256(fingerprint.encode())
    for name in sorted(fields):
        values = fields[name].contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
