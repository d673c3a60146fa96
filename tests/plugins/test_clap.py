"""The CLAP encoder, on tiny random models with the real architecture, window and rate."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ClapFeatureExtractor, ClapModel, LlamaConfig

from safe_framework import Frames
from safe_framework.core.processor import SafeProcessor
from safe_framework.data.audio import Waveform
from safe_framework.errors import CheckpointError, SampleError
from safe_framework.pretrained import quietly
from safe_framework_plugins.encoders.clap import ClapEncoder
from tests.plugins.checkpoints import write_clap

RATE, PROJECTED, WIDTH, STEPS, BANDS = 48000, 512, 64, 1001, 64
FUSED = [False, True]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """An unfused and a fused checkpoint, as narrow and shallow as they can be."""
    new = tmp_path_factory.mktemp
    return {fused: write_clap(new("clap"), fused=fused, width=WIDTH) for fused in FUSED}


def noise(seconds: float = 1.0, seed: int = 0) -> Waveform:
    """A recording that is like no other seed's, louder and louder."""
    values = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))
    return Waveform(values * np.linspace(0.1, 1, len(values)), RATE)


def encode(encoder: ClapEncoder, *samples: object) -> Frames:
    """Frames of raw samples."""
    with torch.no_grad():
        return encoder(**encoder.prepare(samples))


@pytest.mark.parametrize("fused", FUSED)
def test_the_pooled_frame_is_claps_own_embedding(folders: dict[bool, str], fused: bool) -> None:
    """Law: for a full window, the one frame is what ``ClapModel.get_audio_features`` gives."""
    encoder = ClapEncoder(model=folders[fused])
    extractor = ClapFeatureExtractor.from_pretrained(folders[fused])
    inputs = extractor(noise(10.0).values, sampling_rate=RATE, return_tensors="pt")
    inputs["is_longer"] = torch.tensor([[False]])  # the extractor draws a row to call longer
    with quietly():
        model = ClapModel.from_pretrained(folders[fused]).eval()
    with torch.no_grad():
        expected = model.get_audio_features(**inputs).pooler_output
    frames = encode(encoder, noise(10.0))
    assert (encoder.dim, encoder.sampling_rate, encoder.seconds) == (PROJECTED, RATE, 10.0)
    assert frames.values.shape == (1, 1, PROJECTED)
    torch.testing.assert_close(frames.values[:, 0], expected)
    assert frames.mask.tolist() == [[True]]


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("seconds", [0.001, 1.0, 4.0, 9.999, 10.0])
def test_a_short_recording_is_padded_as_clap_does(
    folders: dict[bool, str], fused: bool, seconds: float
) -> None:
    """Law: up to the window, spectrograms are the bits of transformers' feature extractor."""
    extractor = ClapFeatureExtractor.from_pretrained(folders[fused])
    ours = ClapEncoder(model=folders[fused]).prepare([noise(seconds)])
    theirs = extractor(noise(seconds).values, sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(ours["input_features"], theirs["input_features"])
    assert not ours["is_longer"].any()


def test_a_fused_checkpoint_takes_a_long_recording(folders: dict[bool, str]) -> None:
    """Law: the whole is shrunk as CLAP does, and three windows are cut from it in their order."""
    encoder = ClapEncoder(model=folders[True])
    inputs = encoder.prepare([noise(25.0)])
    extractor = ClapFeatureExtractor.from_pretrained(folders[True])
    theirs = extractor(noise(25.0).values, sampling_rate=RATE, return_tensors="pt")
    assert inputs["is_longer"].tolist() == [[True]]
    assert inputs["input_features"].shape == (1, 4, STEPS, BANDS)
    torch.testing.assert_close(inputs["input_features"][:, 0], theirs["input_features"][:, 0])
    first, middle, last = inputs["input_features"][0, 1:].mean(dim=(1, 2))
    assert first < middle < last
    assert torch.equal(inputs["input_features"], encoder.prepare([noise(25.0)])["input_features"])


def test_a_hair_longer_than_the_window_is_the_window(folders: dict[bool, str]) -> None:
    """Law: a recording whose spectrogram is no longer than the window's takes the plain path."""
    inputs = ClapEncoder(model=folders[True]).prepare([Waveform(np.ones(480_100) / 2, RATE)])
    assert not inputs["is_longer"].any()


@pytest.mark.parametrize("fused", FUSED)
def test_the_sequence_is_what_is_pooled(folders: dict[bool, str], fused: bool) -> None:
    """Law: the mean of a full window's sequence, projected, is the pooled frame."""
    pooled = ClapEncoder(model=folders[fused])
    sequence = ClapEncoder(model=folders[fused], frames="sequence")
    frames = encode(sequence, noise(10.0))
    assert frames.values.shape == (1, 32, WIDTH)
    assert sequence.dim == WIDTH
    assert frames.mask.all()
    projected = pooled.projection(frames.values.mean(dim=1))
    expected = encode(pooled, noise(10.0)).values[:, 0]
    torch.testing.assert_close(torch.nn.functional.normalize(projected, dim=-1), expected)


def test_the_sequence_runs_in_time(folders: dict[bool, str]) -> None:
    """Law: a click in the second half changes the frames there most."""
    encoder = ClapEncoder(model=folders[False], frames="sequence")
    quiet = noise(10.0).values
    loud = quiet.copy()
    loud[7 * RATE : 8 * RATE] *= 50  # frames 22.4 to 25.6 of 32
    before, after = encode(encoder, Waveform(quiet, RATE)), encode(encoder, Waveform(loud, RATE))
    change = (after.values - before.values).square().sum(-1)[0]
    assert 20 <= int(change.argmax()) <= 27


def test_repeats_are_masked(folders: dict[bool, str]) -> None:
    """Law: of a short recording, the frames of its first playing are real, a started one too."""
    encoder = ClapEncoder(model=folders[True], frames="sequence")
    frames = encode(encoder, noise(5.0), noise(1.0), noise(0.001), noise(12.0))
    assert frames.mask.sum(dim=1).tolist() == [16, 4, 1, 32]
    assert frames.mask[1, :4].all()


@pytest.mark.parametrize("kind", ["pooled", "sequence"])
@pytest.mark.parametrize("fused", FUSED)
def test_it_is_deterministic_and_frozen(folders: dict[bool, str], fused: bool, kind: str) -> None:
    """Law: the same sample gives the same bits, also in training; no parameter trains."""
    encoder = ClapEncoder(model=folders[fused], frames=kind)
    first = encoder(**encoder.prepare([noise()])).values
    encoder.train()
    assert torch.equal(encoder(**encoder.prepare([noise()])).values, first)
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("kind", ["pooled", "sequence"])
def test_rows_do_not_depend_on_each_other(folders: dict[bool, str], kind: str) -> None:
    """Law: inputs are the same bits, and frames but for rounding, beside a longer recording."""
    encoder = ClapEncoder(model=folders[True], frames=kind)
    inputs = encoder.prepare([noise(12.0, 1), noise()])
    alone = encoder.prepare([noise()])
    assert all(torch.equal(inputs[key][1:], alone[key]) for key in alone)
    together = encode(encoder, noise(12.0, 1), noise()).values[1:]
    torch.testing.assert_close(together, encode(encoder, noise()).values)


def test_trainable_weights_get_gradients(folders: dict[bool, str]) -> None:
    """Law: with `trainable`, every parameter gets a gradient, batch norm's statistics stay."""
    encoder = ClapEncoder(model=folders[True], trainable=True).train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    frames = encoder(**encoder.prepare([noise(12.0), noise()]))
    (frames.values * torch.randn(PROJECTED)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


def test_only_the_audio_side_is_kept(folders: dict[bool, str]) -> None:
    """Law: neither the text encoder nor an unused projection is kept."""
    pooled = ClapEncoder(model=folders[False])
    sequence = ClapEncoder(model=folders[False], frames="sequence")
    assert {name for name, _ in pooled.named_children()} == {"encoder", "projection"}
    assert {name for name, _ in sequence.named_children()} == {"encoder"}


def test_a_worker_process_can_prepare(folders: dict[bool, str]) -> None:
    """Law: the encoder and what it prepares survive pickling, a row for each sample, on the CPU."""
    encoder = ClapEncoder(model=folders[True])
    inputs = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(encoder)).prepare([noise()] * 2)))
    expected = encoder.prepare([noise()] * 2)
    assert all(torch.equal(inputs[key], expected[key]) for key in expected)
    assert {(len(value), value.device.type) for value in inputs.values()} == {(2, "cpu")}


@pytest.mark.parametrize("fused", FUSED)
def test_a_ready_spectrogram_is_the_same_sample(folders: dict[bool, str], fused: bool) -> None:
    """Law: with `input = "mel"`, the extractor's spectrogram gives the waveform's frames."""
    ready = ClapEncoder(model=folders[fused], input="mel")
    mel = ClapEncoder(model=folders[fused]).prepare([noise(12.0 if fused else 9.0)])
    assert ready.sampling_rate is None
    frames = encode(ready, mel["input_features"][0], mel["input_features"][0, 0].numpy())
    expected = encode(ClapEncoder(model=folders[fused]), noise(12.0 if fused else 9.0))
    torch.testing.assert_close(frames.values[:1], expected.values)
    assert frames.values.shape == (2, 1, PROJECTED)


def test_a_processor_takes_ready_spectrograms(folders: dict[bool, str]) -> None:
    """Law: a processor hands an array to an encoder of spectrograms as it is."""
    encoder = ClapEncoder(model=folders[False], input="mel")
    batch = SafeProcessor(None, {"audio": encoder}).modality("audio", [None, np.ones((1001, 64))])
    assert batch["audio__input_features"].shape == (2, 1, STEPS, BANDS)


def test_silence_is_a_sample(folders: dict[bool, str]) -> None:
    """Law: a silent recording is encoded like any other, to finite frames."""
    frames = encode(ClapEncoder(model=folders[False]), Waveform(np.zeros(RATE), RATE))
    assert torch.isfinite(frames.values).all()


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (np.zeros(5, np.float32), r"is a ndarray, .*\nhint: wrap it"),
        (Waveform(np.zeros(9), 16000), r"at 16000 Hz, `clap` takes 48000 Hz\nhint: .*resample"),
        (Waveform(np.array([0.0, np.nan]), RATE), "holds NaN or Inf"),
        (Waveform(np.array([0.0, np.inf]), RATE), "holds NaN or Inf"),
        (noise(10.5), r"lasts 10\.50 s, .* window of 10\.0 s\nhint: cut .*clap-htsat-fused"),
    ],
)
def test_what_cannot_be_encoded_is_named(
    folders: dict[bool, str], sample: object, words: str
) -> None:
    """Law: the error names the sample's position and the fix; nothing is cut silently."""
    with pytest.raises(SampleError, match=r"^`samples\[1\]` .*" + words):
        ClapEncoder(model=folders[False]).prepare([noise(), sample])


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (noise(), r"is a Waveform, not a log-mel .*\nhint: .*`input = \"waveform\"`"),
        (np.zeros((1000, 64), np.float32), r"is float32 \(1, 1000, 64\), not a log-mel"),
        (np.zeros((4, 1001, 64), np.float32), r"is float32 \(4, 1001, 64\), not a log-mel"),
        (np.zeros((1001, 64), np.int16), r"is int16 \(1, 1001, 64\), not a log-mel"),
        (np.zeros((0, 64), np.float32), "is a ndarray, not a log-mel"),
        (np.full((1001, 64), np.nan), "holds NaN or Inf"),
    ],
)
def test_what_is_no_spectrogram_is_named(
    folders: dict[bool, str], sample: object, words: str
) -> None:
    """Law: with `input = "mel"`, the error says what was given and what is taken."""
    with pytest.raises(SampleError, match=r"^`samples\[0\]` " + words):
        ClapEncoder(model=folders[False], input="mel").prepare([sample])


@pytest.mark.parametrize("option", ["frames", "input"])
def test_an_option_of_no_known_value_is_named(folders: dict[bool, str], option: str) -> None:
    """Law: the message starts with the option's name and says its values."""
    with pytest.raises(ValueError, match=rf"^`{option}` must be .* or .*, not 'other'$"):
        ClapEncoder(model=folders[False], **{option: "other"})  # type: ignore[arg-type]  # the point


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Law: a checkpoint of another kind is an error, never a CLAP with random weights."""
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a llama, not a CLAP"):
        ClapEncoder(model=str(tmp_path))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """Law: a folder without a checkpoint is an error that names it."""
    with pytest.raises(CheckpointError, match="cannot be loaded as a CLAP"):
        ClapEncoder(model=str(tmp_path))
