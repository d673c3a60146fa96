"""What Whisper's decoder writes down of a recording, for a prompt.

Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision (arXiv:2212.04356).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from safe_framework.data.audio import check_waveform
from safe_framework.interfaces.encoder import Transcriber
from safe_framework.interfaces.samples import Sample
from safe_framework.pretrained import load_pretrained, quietly
from safe_framework.utils.hashing import fingerprint, text_fingerprint
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio

_LONGEST = 224  # tokens of what was said within a window, as Whisper was trained


class WhisperTranscriber(Transcriber):
    """Writes down speech with a whole Whisper, so that a prompt can quote it.

    Frames carry how a recording sounds, a transcript its words; a question may use either or
    both. The encoder ``whisper`` keeps no decoder: this loads the checkpoint a second time.
    ``transcript = true`` in a recipe does so, and puts what was said where the sample is; by hand::

        heard = WhisperTranscriber("openai/whisper-small")([wave])

    Whisper writes words down for sounds that hold none, music and silence among them.

    Args:
        model: a Whisper checkpoint: a card such as ``"whisper-tiny.en"``, a folder or a hub id.
        language: what is spoken, such as ``"german"`` or ``"de"``; None lets a multilingual
            Whisper find out. One for English alone takes none.
        timestamps: write from when to when each phrase was said: ``[0.0 to 2.4 s] Hello.``
        max_new_tokens: longest transcript of a window of 30 s; None for 224, or what it can.

    Raises:
        CheckpointError: the model cannot be had, or is no Whisper.
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        model: str,
        *,
        language: str | None = None,
        timestamps: bool = False,
        max_new_tokens: int | None = None,
    ) -> None:
        set_aside_broken_torchaudio()
        from transformers import (
            WhisperFeatureExtractor,
            WhisperForConditionalGeneration,
            WhisperTokenizer,
        )

        self._model, self._extractor, self._tokenizer = load_pretrained(
            model,
            WhisperForConditionalGeneration,
            WhisperFeatureExtractor,
            WhisperTokenizer,
            kind="whisper",
            title="Whisper",
        )
        most = self._model.config.max_target_positions - 4  # the decoder is prompted with up to 4
        if max_new_tokens is None:
            max_new_tokens = min(_LONGEST, most)
        if not 1 <= max_new_tokens <= most:
            raise ValueError(f"`max_new_tokens` must be from 1 to {most}, not {max_new_tokens}")
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
        settings = self._model.generation_config
        if getattr(settings, "is_multilingual", False):
            self._options |= {"task": "transcribe", "language": language}
            known = sorted(name.strip("<|>") for name in settings.lang_to_id)
            _check_language(language, known)
        elif language is not None:
            raise ValueError(f"`language` must be left out, since `{model}` knows English alone")
        self._model.requires_grad_(False).eval()
        self._timestamps = timestamps
        self.sampling_rate: int = self._extractor.sampling_rate

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights and the options."""
        return text_fingerprint(fingerprint(self._model), self._timestamps, self._options)

    def to(self, device: torch.device | str) -> WhisperTranscriber:
        """Move the model to a device."""
        self._model.to(device)
        return self

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        """The words of each recording, decoded greedily and one by one.

        Args:
            samples: ``Waveform``s at Whisper's rate of 16 kHz. What is longer than its window of
                30 s is read window after window, each from where the last whole phrase ended.

        Raises:
            SampleError: a sample is no waveform, has another rate, or holds NaN or Inf.
        """
        return [self._write(sample, f"`samples[{i}]`") for i, sample in enumerate(samples)]

    @torch.no_grad()
    def _write(self, sample: Sample, name: str) -> str:
        waveform = check_waveform(sample, name, "whisper", self.sampling_rate)
        several = waveform.seconds > self._extractor.chunk_length
        how = {"padding": "longest", "truncation": False} if several else {}
        inputs = self._extractor(
            [waveform.values],
            sampling_rate=self.sampling_rate,
            return_attention_mask=True,
            return_tensors="pt",
            **how,
        ).to(self._model.device)
        options = {"return_timestamps": True} if several or self._timestamps else {}
        if self._timestamps:
            options["return_segments"] = True
        with quietly():
            out = self._model.generate(
                **inputs, do_sample=False, num_beams=1, **self._options, **options
            )
        if not self._timestamps:
            return self._text(out[0])
        phrases = ((one["start"], one["end"], one["tokens"]) for one in out["segments"][0])
        return "\n".join(
            _timed(self._text(tokens), float(begin), float(end), waveform.seconds)
            for begin, end, tokens in phrases
        )

    def _text(self, ids: torch.Tensor) -> str:
        """The words of some ids, of which those behind all words are times."""
        last = self._model.generation_config.no_timestamps_token_id
        words = ids if last is None else ids[ids <= last]
        return str(self._tokenizer.decode(words, skip_special_tokens=True)).strip()


def _timed(text: str, begin: float, end: float, last: float) -> str:
    """A phrase with its times, in seconds, none of which is behind the recording's last.

    >>> _timed("Hello.", 0.0, 2.4, 3.0)
    '[0.0 to 2.4 s] Hello.'
    """
    return f"[{min(begin, last):.1f} to {min(end, last):.1f} s] {text}"


def _check_language(language: str | None, known: Sequence[str]) -> None:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get((language or "").lower(), (language or "").lower())
    if language is not None and code not in known:
        raise ValueError(f"`language` must be one of {', '.join(known)}, not {language!r}")
