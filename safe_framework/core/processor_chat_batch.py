"""The batch of a chat: the base's own template and tokens, and the samples beside them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safe_framework.core.chat import Talk, parted
from safe_framework.errors import SafeError

if TYPE_CHECKING:
    from safe_framework.core.processor import SafeProcessor

Rate = int | Mapping[str, int] | None

_OF_TOKENS = (
    "padding", "truncation", "max_length", "tokenizer_kwargs", "processor_kwargs",
    "return_assistant_tokens_mask",
)  # fmt: skip


def chat_batch(
    processor: SafeProcessor,
    conversation: Any,
    sampling_rate: Rate,
    options: Mapping[str, Any],
) -> Any:
    """What ``SafeProcessor.apply_chat_template`` returns."""
    base = processor.tokenizer
    if base is None:
        raise SafeError("the model has no tokenizer", hint="pass one: attach(base, tokenizer=...)")
    talk = parted(conversation, processor.encoders, base)
    if not talk.samples:  # the base's own, whatever it is
        return base.apply_chat_template(talk.plain if talk.batched else talk.plain[0], **options)
    wanted = {**_defaults(base), **options}
    tokenize, whole = wanted.pop("tokenize"), wanted.pop("return_dict")
    if wanted.pop("return_tensors", None) not in (None, "auto", "pt"):
        raise SafeError('`return_tensors` must be "pt" beside samples')
    if not tokenize:
        texts = _texts(processor, talk, wanted)
        return texts if talk.batched else texts[0]
    batch = _rows(processor, talk, sampling_rate, wanted)
    return batch if whole else batch["input_ids"]


def chat_rows(
    processor: SafeProcessor, conversations: Sequence[Any], rate: Rate, options: Mapping[str, Any]
) -> Any:
    """Several conversations as one batch of tensors, with samples or without."""
    talk = parted(list(map(list, conversations)), processor.encoders, processor.tokenizer)
    return _rows(processor, talk, rate, options)


def _rows(processor: SafeProcessor, talk: Talk, rate: Rate, options: Mapping[str, Any]) -> Any:
    """The base's tokens of the text alone, and what the samples add."""
    base = processor.tokenizer
    batch = base.apply_chat_template(
        talk.plain, tokenize=True, return_dict=True, return_tensors="pt", **_padded(base, options)
    )
    if talk.samples.keys() & processor.markers.spans:
        texts = _texts(processor, talk, options)
        batch.update(processor.markers.inserted(batch, texts, talk.samples))
    for name, samples in talk.samples.items():
        own = rate.get(name) if isinstance(rate, Mapping) else rate
        batch.update(processor.modality(name, samples, own))
    return batch


def _texts(processor: SafeProcessor, talk: Talk, options: Mapping[str, Any]) -> list[str]:
    """Each conversation as text, with the places of samples whose modality has markers."""
    rendering = {key: value for key, value in options.items() if key not in _OF_TOKENS}
    marked = talk.marked(processor.markers.spans)
    texts: list[str] = processor.tokenizer.apply_chat_template(marked, tokenize=False, **rendering)
    return texts


def _defaults(base: Any) -> dict[str, Any]:
    """Whether the base's own method gives ids, and more than them, if nothing is said."""
    known = inspect.signature(base.apply_chat_template).parameters
    return {key: known[key].default for key in ("tokenize", "return_dict")}


def _padded(base: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under which rows become one batch, padded on the left unless they say otherwise."""
    if hasattr(base, "tokenizer"):
        own = {"padding": True, "padding_side": "left", **(options.get("processor_kwargs") or {})}
        return {**options, "processor_kwargs": own}
    own = {"padding_side": "left", **(options.get("tokenizer_kwargs") or {})}
    return {"padding": True, **options, "tokenizer_kwargs": own}
