"""From a request's samples to what the worker is sent, and to the keys of vLLM's caches.

A request's samples take no place in the text. They are told to vLLM as one item at the prompt's
last token, or, where one of them acts everywhere, over all of it: vLLM puts the item's digest into
the key of that block of the prefix cache, and by it into those of all that follow. Blocks before it
are the base's own, and are shared. Pictures for the base are vLLM's own business, and stay it.
"""

from __future__ import annotations

import dataclasses
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
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    InputProcessingContext,
)

from safe_framework.core.modality import checked_gate
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import AUTO, Strength, check_decidable
from safe_framework.data.audio import Waveform, resample
from safe_framework.errors import SafeError
from safe_framework.interfaces.samples import together
from safe_framework.serving.vllm.adapter import load_adapter, sense_of_sounds

KIND = "audio"
"""What vLLM calls a request's samples, of which senses ever: the kind that its servers take."""

GATE = "gate"
"""Of a request, in ``mm_processor_kwargs``; and, behind the name of a sense, of a sample on its way
to the worker, NaN where a relevance head is to decide."""

DECISION = "decision"
"""Of samples on their way to the worker, where a relevance head is to decide: a number of its
own."""


@attrs.frozen(eq=False)
class PreparedSamples:
    """A request's samples as encoders take them.

    Attributes:
        inputs: by ``NAME__KEY``, the modalities' part of a batch of one row.
        decision: the number by which the worker will tell what relevance heads decided.
    """

    inputs: Mapping[str, Tensor]
    decision: int

    @property
    def names(self) -> list[str]:
        """Of the modalities that they are of."""
        return list(dict.fromkeys(key.partition("__")[0] for key in self.inputs))


class SampleItems(ProcessorBatchItems[Any]):  # type: ignore[misc]  # vLLM is not typed
    """A request's samples: sounds with their rates, all samples by modality, or prepared ones."""


class SampleParser(MultiModalDataParser):  # type: ignore[misc]  # vLLM is not typed
    """Takes samples as they came: the framework resamples sounds itself.

    Args:
        pictures: what reads the base's own pictures; None where it sees none.
    """

    def __init__(self, pictures: MultiModalDataParser | None = None) -> None:
        super().__init__()
        self._pictures = pictures

    def parse_mm_data(self, mm_data: Any) -> Any:
        """A request's samples and pictures as items."""
        rest = {name: data for name, data in mm_data.items() if name != KIND}
        parser: Any = super() if self._pictures is None else self._pictures
        items = parser.parse_mm_data(rest)
        if KIND in mm_data:
            data = mm_data[KIND]
            items[KIND] = SampleItems(data if isinstance(data, list) else [data], KIND)
        return items


class AdapterInfo(BaseProcessingInfo):  # type: ignore[misc]  # vLLM is not typed
    """What vLLM asks about an adapter's samples, and about its base's pictures.

    Args:
        ctx: vLLM's.
        pictures: what vLLM asks about the latter; None where the base sees none.
    """

    def __init__(self, ctx: Any, pictures: BaseProcessingInfo | None = None) -> None:
        super().__init__(ctx)
        self.pictures: Any = pictures

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
        """What reads samples and pictures."""
        return SampleParser(self.pictures and self.pictures.get_data_parser())

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """As many samples and pictures as the server's own limit allows."""
        return {KIND: None, **(self.pictures.supported_mm_limits if self.pictures else {})}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Any) -> Any:
        """Of samples one, so that there is a budget; None where vLLM has to try pictures."""
        found = {}
        if self.pictures:
            counts = {name: count for name, count in mm_counts.items() if name != KIND}
            found = self.pictures.get_mm_max_tokens_per_item(seq_len, counts)
        return None if found is None else {KIND: 1, **found}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """None of a processor of transformers'."""
        return {}

    def get_default_tok_params(self) -> Any:
        """How texts are tokenized: as for the base."""
        known: Any = super() if self.pictures is None else self.pictures
        return known.get_default_tok_params()


class AdapterDummies(BaseDummyInputsBuilder[AdapterInfo]):  # type: ignore[misc]  # vLLM is not typed
    """Pictures of no meaning, with which vLLM measures its memory; no samples, which take none.

    Args:
        info: of the adapter.
        pictures: makes them; None where the base sees none.
    """

    def __init__(self, info: AdapterInfo, pictures: Any = None) -> None:
        super().__init__(info)
        self.pictures = pictures

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Where the pictures are; no text stands for a sample."""
        return self.pictures.get_dummy_text(_but_samples(mm_counts)) if self.pictures else ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Any, mm_options: Any) -> Any:
        """The pictures."""
        if self.pictures is None:
            return {}
        made = self.pictures.get_dummy_mm_data(seq_len, _but_samples(mm_counts), mm_options)
        return {name: data for name, data in made.items() if data}


def _but_samples(by_kind: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in by_kind.items() if name != KIND}


def _keep_places(pictures: Any) -> None:
    """Let a processor of pictures leave a prompt as it is that has the tokens of all of them.

    As transformers' own processor makes it; vLLM takes prompts in which one token stands for each.
    """
    put = pictures._apply_prompt_updates

    def updated(ids: list[int], updates: Mapping[str, Sequence[Any]]) -> Any:
        """The prompt with the tokens of its pictures, and where they are."""
        found = pictures._find_mm_placeholders(ids, updates)
        whole = all(len(found.get(kind, ())) == len(each) for kind, each in updates.items())
        return (ids, found) if whole else put(ids, updates)

    pictures._apply_prompt_updates = updated


class AdapterProcessor(BaseMultiModalProcessor[AdapterInfo]):  # type: ignore[misc]  # vLLM is not typed
    """Prepares a request's samples, which are one item to vLLM, however many there are.

    Args:
        info: of the adapter.
        dummy_inputs: with which vLLM measures its memory.
        pictures: prepares those for the base; None where it sees none.
    """

    def __init__(self, info: AdapterInfo, dummy_inputs: Any, pictures: Any = None) -> None:
        super().__init__(info, dummy_inputs)
        self._pictures = pictures
        if pictures is not None:
            _keep_places(pictures)

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        return {name: MultiModalFieldConfig.batched(KIND) for name in hf_inputs}

    def _get_prompt_updates(self, *_: Any) -> Sequence[Any]:
        return []

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """What the worker is sent for a prompt, its samples and its pictures.

        Raises:
            VLLMValidationError: a sample, the gate or a picture cannot be used.
        """
        items = inputs.mm_data_items.get(KIND)
        given = self.info.ctx.get_merged_mm_kwargs(inputs.hf_processor_mm_kwargs)
        gate = given.pop(GATE, None)
        try:
            self._check_keywords(given)
            fields = {} if items is None else self._fields(items.get_all(), gate)
        except SafeError as error:
            raise VLLMValidationError(str(error), parameter=KIND) from error
        found = self._seen(inputs, timing_ctx)
        if not fields:
            return found
        ids, senses = found["prompt_token_ids"], self.info.adapter
        names = PreparedSamples(fields, 0).names
        everywhere = any(
            senses.modality(n).attend == "all" for n in names if n in senses.modalities
        )
        name = digest(self.info.fingerprint, fields, found["mm_hashes"])
        (item,) = MultiModalKwargsItems.from_hf_inputs(
            fields, self._get_mm_fields_config(fields, {})
        )[KIND]
        if inputs.cache is not None:  # what vLLM has sent once, it sends by name
            item, _ = inputs.cache.get_and_update_item((item, []), name)
        # No token is an embedding of it, so that vLLM never asks the model to make one. Blocks of
        # the prefix cache with one of its places are this request's alone: what a relevance head
        # reads is always computed. It ends with the prompt: of an item whose blocks are all
        # cached, vLLM sends no content.
        count = max(len(ids), 1)
        columns = min(self._columns(names) if DECISION in fields else 1, count)
        columns = count if everywhere else columns
        nowhere = torch.zeros(columns, dtype=torch.bool)
        place = PlaceholderRange(count - columns, columns, nowhere)
        return mm_input(
            prompt_token_ids=ids,
            mm_kwargs=MultiModalKwargsItems({KIND: [item], **found["mm_kwargs"]}),
            mm_hashes={KIND: [name], **found["mm_hashes"]},
            mm_placeholders={KIND: [place], **found["mm_placeholders"]},
        )

    def _columns(self, names: Sequence[str]) -> int:
        """How many of a prompt's last positions are read by relevance heads of these."""
        model = self.info.adapter
        heads = [model.modality(name).relevance for name in names if name in model.modalities]
        return max((head.columns for head in heads if head is not None), default=1)

    def _check_keywords(self, given: Mapping[str, Any]) -> None:
        """Refuse what nobody reads of ``mm_processor_kwargs``; a processor of pictures may."""
        if given and self._pictures is None:
            (unknown, *_) = given
            raise SafeError(f"`mm_processor_kwargs` has `{unknown}`", hint=f"it takes `{GATE}`")

    # Pictures

    def _seen(self, inputs: Any, timing_ctx: Any) -> Any:
        """What the worker is sent for the prompt and its pictures: as of the plain base."""
        items = {name: one for name, one in inputs.mm_data_items.items() if name != KIND}
        if not items:
            return mm_input(list(inputs.prompt), MultiModalKwargsItems({}), {}, {})
        own = {k: value for k, value in inputs.hf_processor_mm_kwargs.items() if k != GATE}
        seen = dataclasses.replace(
            inputs,
            mm_data_items=MultiModalDataItems(items),
            mm_uuid_items=_but_samples(inputs.mm_uuid_items or {}),
            hf_processor_mm_kwargs=own,
        )
        return self._pictures.apply(seen, timing_ctx)

    # Samples

    def _fields(self, given: Sequence[Any], gate: Any) -> dict[str, Tensor]:
        """What the worker is sent of a request's samples; nothing where every gate is 0.

        Raises:
            SafeError: a sample or the gate cannot be used.
        """
        model = self.info.adapter
        samples = self._by_modality(given)
        names = samples.names if isinstance(samples, PreparedSamples) else list(samples)
        gates = request_gates(model, gate, names)
        gates = {name: strength for name, strength in gates.items() if strength != 0}
        if not isinstance(samples, PreparedSamples):
            made = dict[str, Tensor]()
            for name in gates:
                made |= model.processor.modality(name, [together(list(samples[name]))])
            samples = PreparedSamples(made, new_decision())
        fields = {
            key: value for key, value in samples.inputs.items() if key.partition("__")[0] in gates
        }
        for name, strength in gates.items():
            told = math.nan if strength == AUTO else strength
            fields[f"{name}__{GATE}"] = torch.tensor([told], dtype=torch.float64)
        if AUTO in gates.values():
            # With it the digest is no other request's, nor are blocks of the prefix cache that
            # hold an answer: what was decided for one is not what was for another.
            fields[DECISION] = torch.tensor([samples.decision])
        return fields

    def _by_modality(self, given: Sequence[Any]) -> PreparedSamples | dict[str, list[Any]]:
        """A request's samples by the modality that they are of."""
        if len(given) == 1 and isinstance(given[0], PreparedSamples):
            return given[0]
        model, found = self.info.adapter, dict[str, list[Any]]()
        for one in given:
            named = one if isinstance(one, Mapping) else {sense_of_sounds(model): one}
            for name, samples in named.items():
                model.modality(name)  # or an error that names those there are
                listed = samples if isinstance(samples, list) else [samples]
                found.setdefault(name, []).extend(listed)
        for name, samples in found.items():
            rate = model.modality(name).encoder.sampling_rate
            if rate is not None:
                found[name] = [_waveform(one, n, rate) for n, one in enumerate(samples)]
        if not any(found.values()):
            raise SafeError("there is no sample", hint="send one, or a request of text alone")
        return {name: samples for name, samples in found.items() if samples}


class PictureContext(InputProcessingContext):  # type: ignore[misc]  # vLLM is not typed
    """What vLLM's processors of pictures know of the model."""

    def get_merged_mm_kwargs(self, kwargs: Mapping[str, object], **options: Any) -> dict[str, Any]:
        """As vLLM's own, without the gate, which is no processor's."""
        found: dict[str, Any] = super().get_merged_mm_kwargs(kwargs, **options)
        found.pop(GATE, None)
        return found


def new_decision() -> int:
    """The number of a decision that nobody has made."""
    return secrets.randbits(62)


def request_gates(model: SafeModel, given: Any, names: Sequence[str]) -> dict[str, Strength]:
    """The strength of each modality of which a request has samples.

    Args:
        model: that is asked.
        given: of the request: one for all, or by modality; None for the model's own.
        names: of these modalities.

    Raises:
        SafeError: one is none, or left to a head that cannot be followed.
    """
    by_name = given if isinstance(given, Mapping) else {}
    for name in by_name:
        model.modality(name)  # or an error that names those there are
    one = None if given is by_name else given
    found = dict[str, Strength]()
    for name in names:
        wanted = by_name.get(name, one)
        found[name] = checked_gate(model.modality(name).gate if wanted is None else wanted)
    if AUTO in found.values():
        check_can_decide(model, found)
    return found


def check_can_decide(model: SafeModel, gates: Mapping[str, Strength]) -> None:
    """Refuse to leave gates to heads that are not there, or that could not be followed.

    Args:
        model: that is asked.
        gates: of the modalities of which a request has samples.

    Raises:
        SafeError: a modality has none, or one acts before a prompt is read to its end.
    """
    for name in (name for name, strength in gates.items() if strength == AUTO):
        check_decidable(model.modality(name))
        for other in (other for other, strength in gates.items() if strength != 0):
            if model.modality(other).attend != "answer":
                raise SafeError(
                    f'the gate of `{name}` is "auto", and `{other}` acts '
                    f"`{model.modality(other).attend}` of the text: in vLLM a prompt is read "
                    "once, and a relevance head decides at its end",
                    hint="give the request a `gate` from 0 to 1",
                )


def _waveform(sound: Any, number: int, rate: int) -> Waveform:
    """A sound as vLLM decoded it, at the rate that the encoder takes.

    Raises:
        SafeError: it is none, or does not say its rate.
    """
    if isinstance(sound, Waveform):
        return resample(sound, rate)
    if not isinstance(sound, tuple) or len(sound) != 2:
        raise SafeError(
            f"sound {number} comes without its sampling rate",
            hint="give (array, rate); one that is only named by its `uuid` is not kept",
        )
    values, own = sound
    return resample(Waveform(np.asarray(values), round(own)), rate)


def digest(
    fingerprint: str, fields: Mapping[str, Tensor], beside: Mapping[str, Sequence[str]]
) -> str:
    """The name of samples in vLLM's caches: of what they are, how loud, and whose.

    Args:
        fingerprint: of the adapter.
        fields: what the worker is sent, the gates too.
        beside: names of what else the request has, by kind.
    """
    found = hashlib.sha256(fingerprint.encode())
    for name in sorted(fields):
        values = fields[name].contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    for kind in sorted(beside):
        found.update(f"{kind} {' '.join(beside[kind])}\n".encode())
    return found.hexdigest()


def beside_pictures(plain: Any) -> dict[str, Any]:
    """What prepares an adapter's samples beside what prepares a base's pictures.

    Args:
        plain: what makes the latter, as vLLM has it for the base's class.
    """

    def info(ctx: Any) -> AdapterInfo:
        """Of both."""
        return AdapterInfo(ctx, plain.info(PictureContext(ctx.model_config, ctx.tokenizer)))

    def dummies(info: AdapterInfo) -> AdapterDummies:
        """Of both."""
        return AdapterDummies(info, plain.dummy_inputs(info.pictures))

    def processor(info: AdapterInfo, dummies: AdapterDummies) -> AdapterProcessor:
        """Of both."""
        return AdapterProcessor(info, dummies, plain.processor(info.pictures, dummies.pictures))

    return {"processor": processor, "info": info, "dummy_inputs": dummies}
