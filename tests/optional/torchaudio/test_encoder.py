"""The encoder ``torchaudio``, on tiny random models of the real architectures."""

import pickle

import numpy as np
import pytest
import torch

from safe_framework.data.audio import Waveform
from safe_framework.errors import CheckpointError, SampleError
from safe_framework_plugins.encoders.torchaudio import TorchaudioEncoder

pytestmark = pytest.mark.torchaudio

RATE, WIDTH, LAYERS = 16000, 16, 3
BUNDLES = ["WAV2VEC2_BASE", "WAV2VEC2_LARGE_LV60K", "HUBERT_BASE", "HUBERT_LARGE",
           "WAVLM_BASE_PLUS", "WAVLM_LARGE", "WAV2VEC2_ASR_BASE_960H", "MMS_FA"]  # fmt: skip
"""Normalised over time and over channels, with and without a normalised waveform or a head."""


def noise(seconds: float = 0.3, seed: int = 0) -> Waveform:
    """A recording that is like no other seed's."""
    values = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))
    return Waveform(values, RATE)


@pytest.fixture
def encoder(weights) -> TorchaudioEncoder:
    """One with every trap: it normalises the waveform, and over channels."""
    return TorchaudioEncoder(bundle="WAVLM_LARGE", folder=weights("WAVLM_LARGE"))


@pytest.mark.parametrize("name", BUNDLES)
def test_frames_are_those_of_the_bundle(pipelines, weights, name: str) -> None:
    """Law: a recording's frames are what torchaudio's own model gives for it, but for its head."""
    encoder = TorchaudioEncoder(bundle=name, folder=(folder := weights(name)))
    bundle = getattr(pipelines, name)
    model = bundle.get_model(dl_kwargs={"model_dir": folder, "progress": False})
    getattr(model, "model", model).aux = None
    model.apply_log_softmax = model.append_star = False
    expected = model(torch.from_numpy(noise().values)[None])[0]
    frames = encoder(**encoder.prepare([noise()]))
    assert encoder.sampling_rate == bundle.sample_rate
    assert frames.values.shape[2] == encoder.dim == WIDTH
    torch.testing.assert_close(frames.values, expected)
    assert frames.mask.all()


@pytest.mark.parametrize("name", BUNDLES)
def test_rows_do_not_depend_on_each_other(weights, name: str) -> None:
    """Law: beside a longer recording, inputs and frames are the same bits; the rest is masked."""
    encoder = TorchaudioEncoder(bundle=name, folder=weights(name))
    alone = encoder(**encoder.prepare([noise()]))
    together = encoder(**encoder.prepare([noise(0.5, seed=1), noise()]))
    count = alone.values.shape[1]
    assert together.mask.sum(dim=1).tolist() == [24, count]
    assert torch.equal(together.values[1, :count], alone.values[0])


@pytest.mark.parametrize("name", ["HUBERT_BASE", "HUBERT_LARGE"])
@pytest.mark.parametrize("layer", [1, 2, -2, -3])
def test_a_layer_is_that_of_the_whole_model(pipelines, weights, name: str, layer: int) -> None:
    """Law: `layer` counts transformer layers from 1, and those above are dropped."""
    encoder = TorchaudioEncoder(bundle=name, layer=layer, folder=(folder := weights(name)))
    bundle = getattr(pipelines, name)
    whole = bundle.get_model(dl_kwargs={"model_dir": folder, "progress": False})
    states = whole.extract_features(torch.from_numpy(noise().values)[None])[0]
    index = layer - 1 if layer > 0 else LAYERS + layer
    torch.testing.assert_close(encoder(**encoder.prepare([noise()])).values, states[index])
    assert len(encoder.model.encoder.transformer.layers) == index + 1


def test_it_is_deterministic_and_frozen(encoder: TorchaudioEncoder) -> None:
    """Law: the same sample gives the same bits, also in training; no parameter trains."""
    first = encoder(**encoder.prepare([noise()])).values
    encoder.train()
    assert torch.equal(encoder(**encoder.prepare([noise()])).values, first)
    assert not first.requires_grad


@pytest.mark.parametrize("layer", [3, -1])
def test_the_last_layer_is_the_default(weights, layer: int) -> None:
    """Law: the last layer by number is what the encoder gives without one."""
    default = TorchaudioEncoder(bundle="HUBERT_LARGE", folder=(folder := weights("HUBERT_LARGE")))
    chosen = TorchaudioEncoder(bundle="HUBERT_LARGE", layer=layer, folder=folder)
    inputs = default.prepare([noise()])
    assert torch.equal(chosen(**inputs).values, default(**inputs).values)


@pytest.mark.parametrize("layer", [None, 2])
@pytest.mark.parametrize("name", ["WAV2VEC2_BASE", "WAV2VEC2_LARGE_LV60K", "WAVLM_LARGE"])
def test_trainable_weights_get_gradients(weights, name: str, layer: int | None) -> None:
    """Law: with `trainable`, every parameter that is kept gets a gradient."""
    folder = weights(name)
    encoder = TorchaudioEncoder(bundle=name, layer=layer, folder=folder, trainable=True)
    encoder(**encoder.prepare([noise()])).values.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_a_worker_process_can_prepare(encoder: TorchaudioEncoder) -> None:
    """Law: the encoder and what it prepares survive pickling, and stay on the CPU."""
    copy = pickle.loads(pickle.dumps(encoder))
    inputs = pickle.loads(pickle.dumps(copy.prepare([noise(), noise(0.4)])))
    expected = encoder.prepare([noise(), noise(0.4)])
    assert all(torch.equal(inputs[key], expected[key]) for key in ("waveforms", "lengths"))
    assert {len(value) for value in inputs.values()} == {2}
    assert {value.device.type for value in inputs.values()} == {"cpu"}


def test_the_shortest_recording_has_one_frame(encoder: TorchaudioEncoder) -> None:
    """Law: the number of samples that the error for a short recording names is enough."""
    with pytest.raises(SampleError, match=r"too few for one frame\nhint: .* 400 samples"):
        encoder.prepare([Waveform(np.ones(399), RATE)])
    frames = encoder(**encoder.prepare([Waveform(np.ones(400), RATE)]))
    assert frames.values.shape == (1, 1, WIDTH)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (np.zeros(500, np.float32), r"is a ndarray, .*\nhint: wrap it"),
        (Waveform(np.zeros(900), 8000), r"at 8000 Hz, `torchaudio` takes 16000 Hz\nhint: .*resam"),
        (Waveform(np.array([np.nan] * 900), RATE), "holds NaN or Inf"),
        (Waveform(np.array([np.inf] * 900), RATE), "holds NaN or Inf"),
        (noise(31.0), r"lasts 31\.00 s, longer than 30\.0 s\nhint: `seconds = 31`"),
    ],
)
def test_what_cannot_be_encoded_is_named(
    encoder: TorchaudioEncoder, sample: object, words: str
) -> None:
    """Law: the error names the sample's position and the fix; nothing is cut silently."""
    with pytest.raises(SampleError, match=r"^`samples\[1\]` .*" + words):
        encoder.prepare([noise(), sample])


@pytest.mark.parametrize("layer", [0, 4, -4])
def test_a_layer_out_of_range_is_named(weights, layer: int) -> None:
    """Law: the message starts with the option's name and says its range."""
    with pytest.raises(ValueError, match=r"^`layer` must be between 1 and 3, or -3 and -1, not"):
        TorchaudioEncoder(bundle="HUBERT_BASE", layer=layer, folder=weights("HUBERT_BASE"))


def test_an_unknown_bundle_is_named() -> None:
    """Law: a name that is no speech model is an error that lists those that are."""
    with pytest.raises(
        CheckpointError, match=r"no pretrained speech model `TACO.*\nhint: .*HUBERT_BASE"
    ):
        TorchaudioEncoder(bundle="TACOTRON2_WAVERNN_CHAR_LJSPEECH")


def test_weights_of_another_model_are_refused(weights, tmp_path) -> None:
    """Law: a file that holds no such model is an error that names the bundle."""
    torch.save({}, next(tmp_path.joinpath(weights("HUBERT_BASE")).glob("*.pth")))
    with pytest.raises(CheckpointError, match="the weights of `HUBERT_BASE` cannot be had"):
        TorchaudioEncoder(bundle="HUBERT_BASE", folder=str(tmp_path))
