"""Transcripts, by tiny random Whispers with tokenizers of a few words."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    LlamaConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from safe_framework.data.audio import Waveform
from safe_framework.errors import CheckpointError, SampleError
from safe_framework.pretrained import quietly
from safe_framework.testing import TranscriberContract
from safe_framework_plugins.encoders.transcript import WhisperTranscriber, _timed
from safe_framework_plugins.encoders.whisper import WhisperEncoder

RATE, WORDS = 16000, 40
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>",
           "<|transcribe|>", "<|startofprev|>", "<|startoflm|>", "<|notimestamps|>"]  # fmt: skip

Make = Callable[[bool], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Write a checkpoint, multilingual or for English alone."""

    def make(multilingual: bool) -> str:
        path = tmp_path_factory.mktemp("whisper")
        names = {f"Ġw{number}": number for number in range(WORDS)}
        ids = {name: WORDS + number for number, name in enumerate(SPECIAL)}
        torch.manual_seed(3)
        config = WhisperConfig(
            vocab_size=WORDS + len(SPECIAL),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_source_positions=100,
            max_target_positions=20,
            init_std=1.0,
            pad_token_id=WORDS,
            bos_token_id=WORDS,
            eos_token_id=WORDS,
            decoder_start_token_id=WORDS + 1,
        )
        model = WhisperForConditionalGeneration(config)
        settings = {"no_timestamps_token_id": ids["<|notimestamps|>"], "is_multilingual": False}
        if multilingual:
            languages = {name: ids[name] for name in ("<|en|>", "<|de|>")}
            tasks = {name: ids[f"<|{name}|>"] for name in ("translate", "transcribe")}
            settings |= {"is_multilingual": True, "lang_to_id": languages, "task_to_id": tasks}
        model.generation_config = GenerationConfig(
            max_length=20,
            pad_token_id=WORDS,
            bos_token_id=WORDS,
            eos_token_id=WORDS,
            decoder_start_token_id=WORDS + 1,
            **settings,
        )
        with quietly():
            model.save_pretrained(path)
        WhisperFeatureExtractor(chunk_length=2).save_pretrained(path)
        tokenizer = Tokenizer(BPE(vocab=names, merges=[]))
        tokenizer.decoder = ByteLevel()
        tokenizer.add_special_tokens(SPECIAL)
        WhisperTokenizer(tokenizer_object=tokenizer).save_pretrained(path)
        return str(path)

    return make


@pytest.fixture(scope="module")
def english(folder: Make) -> str:
    """A checkpoint for English alone."""
    return folder(False)


@pytest.fixture(scope="module")
def multilingual(folder: Make) -> str:
    """A checkpoint for two languages."""
    return folder(True)


def noise(seconds: float = 1.0, seed: int = 0) -> Waveform:
    """A recording that is like no other seed's."""
    values = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))
    return Waveform(values, RATE)


def expected(folder: str, wave: Waveform, **options: object) -> str:
    """What transformers' own pieces make of a recording."""
    with quietly():
        model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
        inputs = WhisperFeatureExtractor.from_pretrained(folder)(
            wave.values, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True
        )
        ids = model.generate(**inputs, max_new_tokens=8, **options)
    words = WhisperTokenizer.from_pretrained(folder).decode(ids[0], skip_special_tokens=True)
    return words.strip()


def test_a_transcript_is_whispers_own(english: str) -> None:
    """Law: a transcript is what transformers' Whisper writes of the recording alone."""
    transcriber = WhisperTranscriber(english, max_new_tokens=8)
    transcripts = transcriber([noise(), noise(2.0, seed=1)])
    assert transcripts == [expected(english, noise()), expected(english, noise(2.0, seed=1))]
    assert all(text.startswith("w") for text in transcripts)
    assert transcriber([noise()]) == transcripts[:1]


@pytest.mark.parametrize("language", ["de", "german", "English", None])
def test_a_language_is_given_or_detected(multilingual: str, language: str | None) -> None:
    """Law: a multilingual Whisper writes in the given language, or detects one."""
    transcripts = WhisperTranscriber(multilingual, language=language, max_new_tokens=8)([noise()])
    language = language and language.lower()
    assert transcripts == [expected(multilingual, noise(), language=language, task="transcribe")]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (np.zeros(5, np.float32), "is a ndarray, .*\nhint: wrap it"),
        (Waveform(np.zeros(9), 8000), "at 8000 Hz, `whisper` takes 16000 Hz"),
        (Waveform(np.array([0.0, np.nan]), RATE), "holds NaN or Inf"),
    ],
)
def test_what_cannot_be_transcribed_is_named(english: str, sample: object, words: str) -> None:
    """Law: the error names the sample's position and the fix; nothing is cut silently."""
    with pytest.raises(SampleError, match=r"^`samples\[1\]` .*" + words):
        WhisperTranscriber(english, max_new_tokens=1)([noise(0.1), sample])


@pytest.mark.parametrize("count", [0, 17])
def test_a_length_out_of_range_is_named(english: str, count: int) -> None:
    """Law: the message starts with the option's name and says its range."""
    with pytest.raises(ValueError, match=f"^`max_new_tokens` must be from 1 to 16, not {count}$"):
        WhisperTranscriber(english, max_new_tokens=count)


def test_an_unknown_language_is_named(multilingual: str) -> None:
    """Law: a language that the checkpoint lacks is an error that lists those it knows."""
    with pytest.raises(ValueError, match=r"^`language` must be one of de, en, not 'french'$"):
        WhisperTranscriber(multilingual, language="french", max_new_tokens=8)


def test_a_language_for_english_alone_is_refused(english: str) -> None:
    """Law: a language is not ignored where the checkpoint knows but one."""
    with pytest.raises(ValueError, match=r"^`language` must be left out"):
        WhisperTranscriber(english, language="en", max_new_tokens=8)


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Law: a checkpoint of another kind is an error."""
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a llama, not a Whisper"):
        WhisperTranscriber(str(tmp_path))


class TestWhisperTranscriber(TranscriberContract):
    """The contract, by a tiny Whisper of random weights."""

    @pytest.fixture(autouse=True)
    def _checkpoint(self, english: str) -> None:
        self.folder = english

    def make(self) -> WhisperTranscriber:
        """As the encoder gives it."""
        return WhisperEncoder(model=self.folder).transcriber()

    def sample(self, seed: int) -> Waveform:
        """Noise."""
        return noise(0.5 + seed % 3 / 2, seed)


def test_times_are_written_beside_phrases() -> None:
    """Law: from when to when, in seconds; no phrase ends behind the recording."""
    assert _timed("Hello.", 0.0, 2.4, 3.0) == "[0.0 to 2.4 s] Hello."
    assert _timed("Good", 2.4, 30.0, 3.0) == "[2.4 to 3.0 s] Good"
