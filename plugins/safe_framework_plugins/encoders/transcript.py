"""What Whisper's decoder writes down of a recording, for a prompt.

Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision (arXiv:2212.04356).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from safe_framework.data.audio import check_waveform
from safe_framework.errors import SampleError
from safe_framework.interfaces.samples import Sample
from safe_framework.pretrained import load_pretrained, quietly
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio


class Transcriber:
    """Writes down speech with a whole Whisper, so that a prompt can quote it.

    Frames carry how a recording sounds, a transcript its words; a question may use either or
    both. The encoder ``whisper`` keeps no decoder: this loads the checkpoint a second time. In
    training, put the transcripts into the questions of the data, as here::

        heard = Transcriber("openai/whisper-small")([wave])
        question = f"Someone said: {heard[0]} What mood are they in?"
        batch = model.processor(question=[question], audio=[wave])

    Whisper writes words down for sounds that hold none, music and silence among them.

    Args:
        model: a Whisper checkpoint: a card such as ``"whisper-tiny.en"``, a folder or a hub id.
        language: what is spoken, such as ``"german"`` or ``"de"``; None lets a multilingual
            Whisper find out. One for English alone takes none.
        max_new_tokens: longest transcript.

    Raises:
        CheckpointError: the model cannot be had, or is no Whisper.
        ValueError: an option is out of its range.
    """

    def __init__(
        self, model: str, *, language: str | None = None, max_new_tokens: int = 224
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
        self.sampling_rate: int = self._extractor.sampling_rate

    def to(self, device: torch.device | str) -> Transcriber:
        """Move the model to a device."""
        self._model.to(device)
        return self

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        """The words of each recording, decoded greedily and one by one.

        Args:
            samples: ``Waveform``s at Whisper's rate of 16 kHz, up to 30 s long.

        Raises:
            SampleError: a sample is no waveform, has another rate, holds NaN or Inf, or is
                longer than Whisper's window.
        """
        return [self._write(sample, f"`samples[{i}]`") for i, sample in enumerate(samples)]

    @torch.no_grad()
    def _write(self, sample: Sample, name: str) -> str:
        waveform = check_waveform(sample, name, "whisper", self.sampling_rate)
        window = self._extractor.chunk_length
        if waveform.seconds > window:
            raise SampleError(
                f"{name} lasts {waveform.seconds:.2f} s, longer than Whisper's {window} s",
                hint="cut the recording at a pause, and join the transcripts",
            )
        inputs = self._extractor(
            [waveform.values],
            sampling_rate=self.sampling_rate,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self._model.device)
        with quietly():
            ids = self._model.generate(**inputs, do_sample=False, num_beams=1, **self._options)
        return str(self._tokenizer.decode(ids[0], skip_special_tokens=True)).strip()


def _check_language(language: str | None, known: Sequence[str]) -> None:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get((language or "").lower(), (language or "").lower())
    if language is not None and code not in known:
        raise ValueError(f"`language` must be one of {', '.join(known)}, not {language!r}")
