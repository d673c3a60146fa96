"""Turns texts, images and samples of new modalities into one batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from safe_framework.core.markers.text import MarkerText
from safe_framework.core.processor_beginning import begun
from safe_framework.core.processor_chat_batch import chat_batch
from safe_framework.data.frame_cache_unencoded import prepared
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.types import Sample


class SafeProcessor:
    """A tokenizer or processor that also takes samples of the attached modalities.

    Args:
        tokenizer: the base's tokenizer or processor; copied, never changed.
        encoders: the attached encoders by modality.
        prompt: template with ``{question}``, as the recipe's data was prompted.
        spans: by modality with markers, the ids that stand where its sample is.

    Attributes:
        markers: puts these ids into texts.
    """

    def __init__(
        self,
        tokenizer: Any,
        encoders: Mapping[str, Encoder],
        *,
        prompt: str = "{question}",
        spans: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.tokenizer = _with_padding(copy.deepcopy(tokenizer))
        self.encoders = dict(encoders)
        self.template = prompt
        self.markers = MarkerText(self.tokenizer, spans or {})

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        *,
        question: str | Sequence[str] | None = None,
        sampling_rate: int | Mapping[str, int] | None = None,
        return_tensors: str = "pt",
        padding: bool | str = True,
        **inputs: Any,
    ) -> Any:
        """A batch for ``model(**batch)`` and ``model.generate(**batch)``.

        The markers of a modality that has some stand where a text with a sample says ``<NAME>``,
        or before it. They come on top of a ``max_length``. A text without a token of its own
        begins with the base's start token.

        Args:
            text: one text or several, as they are.
            question: instead of ``text``: questions, put into the recipe's prompt.
            sampling_rate: of plain arrays given as samples, in hertz; by modality if they
                differ.
            return_tensors: ``"pt"``, the only form there is.
            padding: passed to the tokenizer.
            **inputs: for each attached modality a sample or one (or None) for each text; all
                else, such as ``images``, goes to the base's own processor.

        Raises:
            SampleError: a sample cannot be used, or there are not as many as texts.
        """
        if return_tensors != "pt":
            raise SafeError(f'`return_tensors` must be "pt", not {return_tensors!r}')
        texts = self._texts(text, question)
        given = {
            name: self._per_text(name, inputs.pop(name), len(texts))
            for name in list(inputs)
            if name in self.encoders
        }
        if self.tokenizer is None:
            raise SafeError(
                "the model has no tokenizer", hint="pass one: attach(base, tokenizer=...)"
            )
        inputs.setdefault("padding_side", "left")
        plain = [begun(self.tokenizer, self.markers.plain(text)) for text in texts]
        batch = self.tokenizer(text=plain, return_tensors="pt", padding=padding, **inputs)
        batch.update(self.markers.inserted(batch, texts, given))
        for name, samples in given.items():
            rate = sampling_rate.get(name) if isinstance(sampling_rate, Mapping) else sampling_rate
            batch.update(self.modality(name, samples, rate))
        return batch

    def apply_chat_template(
        self,
        conversation: Any,
        *,
        sampling_rate: int | Mapping[str, int] | None = None,
        **options: Any,
    ) -> Any:
        """As the base's own method, of messages that may hold samples of attached modalities.

        A part ``{"type": NAME, "path": ...}`` (or ``"url"`` of a local file, or ``NAME`` itself
        with an array) becomes the sample of its conversation, and with markers ``<NAME>`` is put
        where it stood. All else is rendered, tokenized and, where the base has a processor for
        it, shown to it as by the base's own method; without any such part the result is the
        base's very own.

        Args:
            conversation: messages, or a list of conversations; each has at most one sample of
                a modality.
            sampling_rate: of plain arrays, where their parts do not say it, in hertz.
            **options: as the base's, such as ``add_generation_prompt`` and ``tokenize``. Beside
                samples, ids come as tensors in rows, padded on the left.

        Raises:
            SampleError: a part is of an unknown type, or its sample cannot be used.
        """
        return chat_batch(self, conversation, sampling_rate, options)

    @property
    def padding(self) -> int:
        """The id that fills rows up; it is masked, so any would do."""
        return padding_id(self.tokenizer, 0)

    def decode(self, ids: Tensor | Sequence[int], **options: Any) -> str:
        """The text of ids, markers among them, as the tokenizer's own ``decode``."""
        return self.markers.decode(ids, **options)

    def batch_decode(self, sequences: Tensor | Sequence[Any], **options: Any) -> list[str]:
        """The text of each row of ids."""
        return [self.decode(ids, **options) for ids in sequences]

    def modality(
        self, name: str, samples: Sequence[Sample | None], sampling_rate: int | None = None
    ) -> dict[str, Tensor]:
        """One modality's part of a batch, a row for each sample; None is absent.

        Raises:
            SampleError: a sample cannot be used.
        """
        encoder = self.encoders[name]
        known = [s if s is None else _wrap(name, encoder, s, sampling_rate) for s in samples]
        return prepared(name, encoder, known)

    def _texts(self, text: Any, question: Any) -> list[str]:
        if (text is None) == (question is None):
            raise SafeError("give either `text` or `question`")
        if text is not None:
            return [text] if isinstance(text, str) else list(text)
        questions = [question] if isinstance(question, str) else question
        return [self.prompt(q) for q in questions]

    def prompt(self, question: str) -> str:
        """A question in the recipe's prompt."""
        return self.template.replace("{question}", question)

    def _per_text(self, name: str, samples: Any, count: int) -> list[Sample | None]:
        listed = list(samples) if isinstance(samples, (list, tuple)) else [samples]
        if len(listed) != count:
            raise SampleError(
                f"`{name}` has {len(listed)} samples for {count} texts",
                hint="give one for each text, None where there is none",
            )
        return listed


def _wrap(name: str, encoder: Encoder, sample: Sample, rate: int | None) -> Sample:
    """A plain array as a Waveform, if the encoder takes sampled signals."""
    if encoder.sampling_rate is None or not isinstance(sample, (np.ndarray, Tensor, list)):
        return sample
    from safe_framework.data.audio import Waveform

    if rate is None:
        raise SampleError(
            f"`{name}` is a plain array, which does not say how fast it was sampled",
            hint=f"pass sampling_rate=..., in hertz; the encoder takes {encoder.sampling_rate}",
        )
    return Waveform(np.asarray(sample, dtype=np.float32), rate)


def padding_id(tokenizer: Any, default: int) -> int:
    """The id with which a processor of ``tokenizer`` pads; ``default`` where it has none."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    named = (getattr(inner, "pad_token_id", None), getattr(inner, "eos_token_id", None))
    return next((found for found in named if type(found) is int), default)


def _with_padding(tokenizer: Any) -> Any:
    """Give our copy a pad token where the base's tokenizer has none."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if inner is not None and getattr(inner, "pad_token", None) is None:
        inner.pad_token = inner.eos_token
    return tokenizer
