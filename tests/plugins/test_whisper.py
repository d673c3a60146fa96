"""The Whisper encoder, on a tiny random one of two seconds and four layers."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, WhisperForConditionalGeneration, WhisperModel

from safe_framework.data.audio import Waveform
from safe_framework.errors import CheckpointError, SampleError
from safe_framework.pretrained import quietly
from safe_framework_plugins.encoders.whisper import WhisperEncoder
from tests.plugins.checkpoints import write_whisper

RATE, LAYERS, WIDTH, FRAMES = 16000, 4, 16, 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint; it has a rate of dropout, which must never act."""
    path = tmp_path_factory.mktemp("whisper")
    write_whisper(path, frames=FRAMES, layers=LAYERS, width=WIDTH)
    return str(path)


@pytest.fixture(scope="module")
def encoder(folder: str) -> WhisperEncoder:
    """The encoder as it is by default."""
    return WhisperEncoder(model=folder)


def noise(seconds: float = 1.0, seed: int = 0) -> Waveform:
    """A recording that is like no other seed's."""
    values = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))
    return Waveform(values, RATE)


def test_frames_have_their_shape_and_mask(encoder: WhisperEncoder) -> None:
    """Law: 50 frames a second are real, a started one included, and the rest is masked."""
    frames = encoder(**encoder.prepare([noise(1.0), noise(0.501), noise(2.0)]))
    assert frames.values.shape == (3, FRAMES, WIDTH)
    assert frames.mask.sum(dim=1).tolist() == [50, 26, 100]
    assert frames.mask[1, :26].all()


def test_it_says_what_it_takes_and_gives(encoder: WhisperEncoder) -> None:
    """Law: width, rate and window are those of the checkpoint."""
    assert (encoder.dim, encoder.sampling_rate, encoder.seconds) == (WIDTH, RATE, 2.0)


@pytest.mark.parametrize("layer", [*range(-LAYERS - 1, LAYERS + 1), None])
def test_a_layer_is_that_of_the_whole_model(folder: str, layer: int | None) -> None:
    """Law: `layer` counts as transformers' `hidden_states` does, and gives the same bits."""
    encoder = WhisperEncoder(model=folder, layer=layer)
    inputs = encoder.prepare([noise()])
    with quietly():
        whole = WhisperModel.from_pretrained(folder).encoder.eval()
    states = whole(inputs["input_features"], output_hidden_states=True).hidden_states
    assert torch.equal(encoder(**inputs).values, states[-1 if layer is None else layer])


def test_layers_above_are_dropped(folder: str) -> None:
    """Law: neither the decoder nor a layer above the chosen one is kept."""
    encoder = WhisperEncoder(model=folder, layer=2)
    names = [name for name, _ in encoder.named_parameters()]
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"0", "1"}
    assert not any("decoder" in name for name in names)


def test_a_short_window_keeps_the_first_positions(folder: str) -> None:
    """Law: before any attention, a short window gives the first frames of the whole one."""
    whole = WhisperEncoder(model=folder, layer=0)
    short = WhisperEncoder(model=folder, layer=0, seconds=1)
    frames = short(**short.prepare([noise(0.5)]))
    assert frames.values.shape == (1, 50, WIDTH)
    expected = whole(**whole.prepare([noise(0.5)])).values[:, :49]  # the last sees padding
    torch.testing.assert_close(frames.values[:, :49], expected)


def test_a_window_has_room_for_what_it_says(folder: str) -> None:
    """Law: `seconds` that are no whole number of frames are rounded up."""
    encoder = WhisperEncoder(model=folder, seconds=0.305)
    assert encoder.prepare([noise(0.305)])["lengths"].tolist() == [16]


def test_the_same_sample_gives_the_same_frames(encoder: WhisperEncoder) -> None:
    """Law: frames are deterministic, even after the modules were set to training."""
    first = encoder(**encoder.prepare([noise()]))
    encoder.train()
    second = encoder(**encoder.prepare([noise()]))
    assert torch.equal(first.values, second.values)


def test_rows_do_not_depend_on_each_other(encoder: WhisperEncoder) -> None:
    """Law: in any batch a sample's inputs are the same bits, and its frames but for rounding."""
    alone, together = encoder.prepare([noise(0.7)]), encoder.prepare([noise(2.0, 1), noise(0.7)])
    assert torch.equal(together["input_features"][1:], alone["input_features"])
    torch.testing.assert_close(encoder(**together).values[1:], encoder(**alone).values)


def test_it_is_frozen(encoder: WhisperEncoder) -> None:
    """Law: no parameter trains, and frames carry no gradient."""
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(**encoder.prepare([noise()])).values.requires_grad


def test_a_worker_process_can_prepare(encoder: WhisperEncoder) -> None:
    """Law: the encoder and what it prepares survive pickling."""
    copy = pickle.loads(pickle.dumps(encoder))
    inputs = pickle.loads(pickle.dumps(copy.prepare([noise()])))
    assert torch.equal(inputs["input_features"], encoder.prepare([noise()])["input_features"])


def test_loading_prints_nothing(folder: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Law: no progress bar and no note is printed."""
    WhisperEncoder(model=folder)
    assert capfd.readouterr() == ("", "")


def test_silence_is_a_sample(encoder: WhisperEncoder) -> None:
    """Law: a silent recording is encoded like any other, to finite frames."""
    frames = encoder(**encoder.prepare([Waveform(np.zeros(RATE), RATE)]))
    assert torch.isfinite(frames.values).all()


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (np.zeros(5, np.float32), r"is a ndarray, .*\nhint: wrap it"),
        (torch.zeros(5), "is a Tensor, which does not say its rate"),
        (Waveform(np.zeros(9), 44100), r"at 44100 Hz, `whisper` takes 16000 Hz\nhint: .*resample"),
        (Waveform(np.array([0.0, np.nan]), RATE), "holds NaN or Inf"),
        (Waveform(np.array([0.0, np.inf]), RATE), "holds NaN or Inf"),
        (noise(1.3), r"lasts 1\.30 s, .* window of 1\.0 s\nhint: `seconds = 2`"),
        (noise(2.5), r"\nhint: cut the recording: the model's own window is 2\.0 s"),
    ],
)
def test_what_cannot_be_encoded_is_named(folder: str, sample: object, words: str) -> None:
    """Law: the error names the sample's position and the fix; nothing is cut silently."""
    encoder = WhisperEncoder(model=folder, seconds=1.0)
    with pytest.raises(SampleError, match=r"^`samples\[1\]` .*" + words):
        encoder.prepare([noise(), sample])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": 9}, "^`layer` must be between -5 and 4, not 9$"),
        ({"layer": -6}, "^`layer` must be between -5 and 4, not -6$"),
        ({"seconds": 0.0}, r"^`seconds` must be between 0\.02 and 2\.0, not 0\.0$"),
        ({"seconds": 2.5}, r"^`seconds` must be between 0\.02 and 2\.0, not 2\.5$"),
        ({"seconds": float("nan")}, r"^`seconds` must be between 0\.02 and 2\.0, not nan$"),
    ],
)
def test_an_option_out_of_range_is_named(
    folder: str, options: dict[str, float], words: str
) -> None:
    """Law: the message starts with the option's name and says its range."""
    with pytest.raises(ValueError, match=words):
        WhisperEncoder(model=folder, **options)  # type: ignore[arg-type]  # mypy joins the types


@pytest.mark.parametrize("architecture", [WhisperModel, WhisperForConditionalGeneration])
def test_weights_are_those_of_either_whole_model(tmp_path: Path, architecture: Any) -> None:
    """Law: it reads the encoder's own weights, however the checkpoint was written."""
    folder = write_whisper(tmp_path)
    with quietly():
        whole = architecture.from_pretrained(folder)
        whole.save_pretrained(folder)
    expected = whole.get_encoder().state_dict()
    seen = WhisperEncoder(model=folder).encoder.state_dict()
    assert seen.keys() == expected.keys()
    assert all(torch.equal(seen[name], expected[name]) for name in expected)


def test_a_checkpoint_without_a_weight_is_refused(tmp_path: Path) -> None:
    """Law: a weight of the encoder that the checkpoint lacks is an error, not a random one."""
    folder = write_whisper(tmp_path)
    path = Path(folder, "model.safetensors")
    kept = {name: t for name, t in load_file(path).items() if "encoder.layers.0.fc1.w" not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, such as `layers\.0\.fc1\.weight"):
        WhisperEncoder(model=folder)


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Law: a checkpoint of another kind is an error, never a Whisper with random weights."""
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a llama, not a Whisper"):
        WhisperEncoder(model=str(tmp_path))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """Law: a folder without a checkpoint is an error that names it."""
    with pytest.raises(CheckpointError, match="cannot be loaded as a Whisper"):
        WhisperEncoder(model=str(tmp_path))
