"""The sensor encoder, on made-up recordings of three channels."""

import pickle

import numpy as np
import pytest
import torch

from safe_framework.data.audio import Waveform
from safe_framework.errors import SampleError
from safe_framework_plugins.encoders.sensor import Recording, SensorEncoder

CHANNELS, RATE, PATCH, WIDTH = 3, 50.0, 8, 6
embeddings = pytest.mark.parametrize("embedding", ["linear", "conv"])


def encoder(**options: object) -> SensorEncoder:
    """A small one."""
    torch.manual_seed(0)
    small = {"channels": CHANNELS, "rate": RATE, "patch": PATCH, "dim": WIDTH, "window": 2.0}
    return SensorEncoder(**small | options)  # type: ignore[arg-type]  # joined types


def readings(steps: int = 20, seed: int = 0) -> np.ndarray:
    """Random readings, (steps, channels), each channel of its own level and scale."""
    values = np.random.default_rng(seed).normal(size=(steps, CHANNELS))
    return values * [1.0, 100.0, 0.01] + [0.0, 9.81, -3.0]


@embeddings
def test_frames_shape(embedding: str) -> None:
    """Law: a patch is a frame, a started one included, and padding is masked."""
    made = encoder(embedding=embedding)
    frames = made(**made.prepare([readings(20), readings(8), readings(1)]))
    assert frames.values.shape == (3, 3, WIDTH) == (3, 3, made.dim)
    assert frames.mask.sum(dim=1).tolist() == [3, 1, 1]
    assert frames.mask[:, 0].all()


@embeddings
def test_deterministic(embedding: str) -> None:
    """Law: the same sample gives the same frames."""
    made = encoder(embedding=embedding)
    first, second = (made(**made.prepare([readings()])).values for _ in range(2))
    assert torch.equal(first, second)


@embeddings
@pytest.mark.parametrize("steps", [5, 8, 20, 24])
def test_row_independent(embedding: str, steps: int) -> None:
    """Law: beside a longer sample, a sample's valid frames are the same."""
    made = encoder(embedding=embedding)
    alone = made(**made.prepare([readings(steps)]))
    together = made(**made.prepare([readings(60, 1), readings(steps)]))
    assert together.mask[1].sum() == alone.mask.sum()
    torch.testing.assert_close(together.values[1, : alone.mask.sum()], alone.values[0])


def test_prepare_on_cpu() -> None:
    """Law: prepared tensors are on the CPU, pickle, and have a row for each sample."""
    copy = pickle.loads(pickle.dumps(encoder()))
    inputs = pickle.loads(pickle.dumps(copy.prepare([readings(), readings(9)])))
    assert all(len(tensor) == 2 and tensor.device.type == "cpu" for tensor in inputs.values())
    assert torch.equal(inputs["readings"], encoder().prepare([readings(), readings(9)])["readings"])


@embeddings
def test_every_parameter_trains_by_default(embedding: str) -> None:
    """Law: each parameter gets a gradient that is not zero; none with `trainable = false`."""
    made = encoder(embedding=embedding)
    made(**made.prepare([readings()])).values.square().sum().backward()
    gradients = {name: p.grad for name, p in made.named_parameters()}
    assert gradients
    assert not [name for name, g in gradients.items() if g is None or not g.any()]
    frozen = encoder(embedding=embedding, trainable=False)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_level_and_scale_of_a_channel_are_taken_out() -> None:
    """Law: normalised, a rescaled and shifted recording gives the same readings; else not."""
    moved = readings() * 7 - 3
    for normalise, same in [(True, True), (False, False)]:
        made = encoder(normalise=normalise)
        pair = [made.prepare([values])["readings"] for values in (readings(), moved)]
        assert torch.allclose(*pair, atol=1e-4) is same
    level = encoder().prepare([readings(16)])["readings"][0]
    torch.testing.assert_close(level.mean(0), torch.zeros(CHANNELS), atol=1e-5, rtol=0)
    torch.testing.assert_close(level.std(0, correction=0), torch.ones(CHANNELS))


def test_a_channel_that_never_changes_is_zero() -> None:
    """Law: rounding in a constant channel is not blown up to noise."""
    values = readings()
    values[:, 1] = 0.1 + np.resize([0, 1e-17], len(values))
    assert not encoder().prepare([values])["readings"][0, :, 1].any()


def test_a_gap_is_masked_if_asked_for() -> None:
    """Law: with `gaps = "mask"`, what stands in a gap is unknown, and an empty patch no frame."""
    made = encoder(gaps="mask")
    values = readings(24)
    values[2, 1] = np.nan
    values[8:16] = np.nan
    inputs = made.prepare([values])
    frames = made(**inputs)
    assert frames.mask.tolist() == [[True, False, True]]
    assert torch.isfinite(frames.values).all()
    assert inputs["there"].sum() == 24 * CHANNELS - 1 - 8 * CHANNELS
    known = inputs["readings"][0][inputs["there"][0].all(dim=1)][:, 0]
    assert abs(float(known.mean())) < 0.2


def test_a_gap_is_no_reading_of_zero() -> None:
    """Law: a missing reading and a reading of 0 give different frames."""
    made = encoder(gaps="mask", normalise=False)
    zero, gap = readings(8), readings(8)
    zero[3, 0], gap[3, 0] = 0.0, np.nan
    assert not torch.equal(*(made(**made.prepare([values])).values for values in (zero, gap)))


def test_what_says_its_rate_is_taken() -> None:
    """Law: arrays, tensors, recordings and one-channel waveforms of the rate are samples."""
    values = readings()
    made = encoder()
    expected = made.prepare([values])["readings"]
    for sample in (torch.from_numpy(values), Recording(values, RATE), Recording(values, 50)):
        assert torch.equal(made.prepare([sample])["readings"], expected)
    single = encoder(channels=1)
    wave = Waveform(values[:, 0], 50)
    torch.testing.assert_close(
        single.prepare([wave])["readings"], single.prepare([values[:, :1]])["readings"]
    )


def changed(step: int, value: float) -> np.ndarray:
    """Readings of which one is another value."""
    values = readings()
    values[step, 1] = value
    return values


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (Recording(readings(), 100.0), r"is sampled at 100\.0 Hz, `sensor` takes 50\.0 Hz\nhint: "),
        (readings()[:, :2], r"has shape \(20, 2\), `sensor` takes \(steps, 3\)"),
        (readings()[:, 0], r"has shape \(20,\)"),
        (readings()[:0], r"has shape \(0, 3\)"),
        (changed(4, np.nan), r"holds NaN, first at step 4 of channel 1\nhint: .*gaps = \"mask\""),
        (changed(4, -np.inf), "holds Inf"),
        (readings(101), r"lasts 2\.02 s, longer than the window of 2\.0 s\nhint: `window = 3`"),
        ([[1.0, 2.0, 3.0]], "is no array of numbers but list"),
        (np.array([["a"] * 3]), "is no array of numbers but array of <U1"),
    ],
)
def test_what_cannot_be_encoded_is_named(sample: object, words: str) -> None:
    """Law: the error names the sample's position and the fix; nothing is cut silently."""
    with pytest.raises(SampleError, match=r"^`samples\[1\]` .*" + words):
        encoder().prepare([readings(), sample])


def test_a_recording_of_gaps_alone_is_refused() -> None:
    """Law: a sample without one reading is an error even where gaps are allowed."""
    with pytest.raises(SampleError, match="holds no reading"):
        encoder(gaps="mask").prepare([np.full((8, CHANNELS), np.nan)])


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("channels", 0), ("patch", 0), ("dim", 0), ("rate", 0.0), ("rate", float("nan")),
        ("window", 0.0), ("window", float("inf")),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_named(option: str, wrong: float) -> None:
    """Law: the message starts with the option's name and ends with its value."""
    with pytest.raises(ValueError, match=rf"^`{option}` must be .*, not {wrong}$"):
        encoder(**{option: wrong})
