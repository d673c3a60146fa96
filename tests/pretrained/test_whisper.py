"""A Whisper that CTranslate2 stored, as a checkpoint folder."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from safe_framework.errors import CheckpointError
from safe_framework.pretrained import quietly
from safe_framework.pretrained.converters.ctranslate2_whisper import read_variables, write_whisper


@pytest.fixture
def source(tmp_path: Path, whisper_bytes: bytes) -> Path:
    """The tiny Whisper as a package holds it."""
    path = tmp_path / "model.bin"
    path.write_bytes(whisper_bytes)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty folder to write into."""
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def test_every_weight_survives(
    source: Path, target: Path, whisper: WhisperForConditionalGeneration
) -> None:
    """Law: the folder's model has the weights that were stored, bit for bit."""
    write_whisper(source, target)
    with quietly():
        loaded = WhisperForConditionalGeneration.from_pretrained(target).state_dict()
    expected = whisper.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_the_folder_is_complete(source: Path, target: Path) -> None:
    """Law: encoder, decoder and feature extractor load without a missing or unexpected key."""
    write_whisper(source, target)
    with quietly():
        _, report = WhisperModel.from_pretrained(target, output_loading_info=True)
    assert not any(report.values())
    assert WhisperFeatureExtractor.from_pretrained(target).feature_size == 80


def test_what_lies_beside_it_is_used(source: Path, target: Path) -> None:
    """Law: tokens that generation suppresses are taken from the file beside the weights."""
    facts = {"suppress_ids": [1, 2], "suppress_ids_begin": [220]}
    source.with_name("config.json").write_text(json.dumps(facts))
    write_whisper(source, target)
    generation = GenerationConfig.from_pretrained(target)
    assert (generation.suppress_tokens, generation.begin_suppress_tokens) == ([1, 2], [220])
    assert (generation.is_multilingual, generation.no_timestamps_token_id) == (False, 50362)


def test_half_precision_is_widened(
    tmp_path: Path, target: Path, variables: dict[str, np.ndarray], store: Callable[..., bytes]
) -> None:
    """Law: float16 weights become the float32 of the same value."""
    halves = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in variables.items()
    }
    (tmp_path / "half.bin").write_bytes(store(halves, {}))
    write_whisper(tmp_path / "half.bin", target)
    with quietly():
        loaded = WhisperModel.from_pretrained(target)
    expected = halves["encoder/conv1/weight"].astype(np.float32)
    assert np.array_equal(loaded.encoder.conv1.weight.detach().numpy(), expected)


def test_the_random_state_is_left_alone(source: Path, target: Path) -> None:
    """Law: converting draws nothing from the caller's random numbers."""
    before = torch.get_rng_state()
    write_whisper(source, target)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_alias_is_the_same_array(source: Path) -> None:
    """Law: an alias reads as the array that it names."""
    found = read_variables(source, "WhisperSpec")
    assert found["decoder/projection/weight"] is found["decoder/embeddings/weight"]


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.3, 0.999999])
def test_a_truncated_file_is_refused(source: Path, target: Path, share: float) -> None:
    """Law: a file cut anywhere is an error that names it."""
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"model\.bin` is not a whole CTranslate2"):
        write_whisper(source, target)


@pytest.mark.parametrize("data", [b"GGUF" * 99, b"text\n" * 99, bytes(999), b"\xff" * 999])
def test_a_foreign_file_is_refused(source: Path, target: Path, data: bytes) -> None:
    """Law: a file of another format is an error that names it."""
    source.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.bin` is not a whole CTranslate2"):
        write_whisper(source, target)


def test_bytes_after_the_end_are_refused(source: Path, target: Path) -> None:
    """Law: a file that goes on after its end was not understood, and is refused."""
    source.write_bytes(source.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="bytes are left over"):
        write_whisper(source, target)


def test_another_kind_of_model_is_refused(
    source: Path, target: Path, store: Callable[..., bytes]
) -> None:
    """Law: a CTranslate2 file of another model says which it is."""
    source.write_bytes(store({}, {}, "TransformerSpec"))
    with pytest.raises(CheckpointError, match="of TransformerSpec, not 6 of WhisperSpec"):
        write_whisper(source, target)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("encoder/conv1/weight_scale", np.ones(8, np.float32), "its weights are quantised"),
        ("decoder/embeddings/weight", np.zeros((99, 8), np.float32), "vocabulary has 99 tokens"),
        ("encoder/layer_0/self_attention/linear_0/bias", np.ones(24, np.float32), "on its keys"),
        ("encoder/layer_1/ffn/linear_1/bias", np.ones(7, np.float32), "size mismatch"),
    ],
)
def test_a_whisper_of_another_make_is_refused(
    source: Path,
    target: Path,
    variables: dict[str, np.ndarray],
    store: Callable[..., bytes],
    name: str,
    array: np.ndarray,
    words: str,
) -> None:
    """Law: what would be read wrongly is an error that says why."""
    source.write_bytes(store(variables | {name: array}, {}))
    with pytest.raises(CheckpointError, match=f"(?s)is not a Whisper that can be read: .*{words}"):
        write_whisper(source, target)


def test_a_lacking_array_is_named(
    source: Path, target: Path, variables: dict[str, np.ndarray], store: Callable[..., bytes]
) -> None:
    """Law: the error names an array that the file should have and does not."""
    fewer = {name: array for name, array in variables.items() if name != "encoder/num_heads"}
    source.write_bytes(store(fewer, {}))
    with pytest.raises(CheckpointError, match="it lacks 'encoder/num_heads'"):
        write_whisper(source, target)
