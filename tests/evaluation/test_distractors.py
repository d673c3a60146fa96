"""What an irrelevant sample promises."""

import numpy as np
import pytest
import torch

from safe_framework.data.audio import Waveform
from safe_framework.data.distractors import KINDS, distractor
from safe_framework.errors import DataError


def generator(seed=0):
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def waveforms():
    """Two sounds of different length."""
    random = np.random.default_rng(0)
    return [Waveform(random.normal(size=n).astype(np.float32) * 0.1, 16000) for n in (500, 700)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_waveform_stays_a_waveform(kind, waveforms):
    """Each kind keeps the type, the rate, a length of the pool and the dtype."""
    sample = distractor(kind, waveforms, generator())
    assert isinstance(sample, Waveform)
    assert sample.sampling_rate == 16000
    assert len(sample.values) in {500, 700}
    assert sample.values.dtype == np.float32


def test_silent_is_zero(waveforms):
    """Silence holds nothing but zeros."""
    assert not distractor("silent", waveforms, generator()).values.any()


def test_noise_is_as_loud_as_its_model():
    """Noise has the root mean square of the sample that it replaces."""
    tone = np.sin(np.arange(20000) / 5).astype(np.float32)
    noise = distractor("noise", [tone], generator())
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(np.sqrt(np.mean(tone**2)), rel=0.03)
    assert abs(np.corrcoef(noise, tone)[0, 1]) < 0.05


def test_shuffled_is_a_sample_of_the_pool(waveforms):
    """A shuffled sample is one of the pool, and every one can be drawn."""
    source = generator()
    drawn = [distractor("shuffled", waveforms, source) for _ in range(40)]
    lengths = {len(sample.values) for sample in drawn}
    assert lengths == {500, 700}
    assert all(any(np.array_equal(s.values, w.values) for w in waveforms) for s in drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind, waveforms):
    """Equal seeds give equal samples."""
    one, other = (distractor(kind, waveforms, generator(3)) for _ in range(2))
    assert np.array_equal(one.values, other.values)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_any_kind_of_number(kind, dtype):
    """A plain array keeps its shape and dtype; integers do not overflow."""
    image = np.full((4, 5, 3), 100, dtype)
    sample = distractor(kind, [image], generator())
    assert sample.shape == image.shape
    assert sample.dtype == dtype


def test_the_pool_is_left_alone(waveforms):
    """No kind writes into the samples that it is made from."""
    before = [w.values.copy() for w in waveforms]
    for kind in KINDS:
        distractor(kind, waveforms, generator())
    assert all(np.array_equal(b, w.values) for b, w in zip(before, waveforms, strict=True))


@pytest.mark.parametrize(
    ("kind", "pool", "message"),
    [
        ("loud", [np.ones(3)], "`loud` is no kind"),
        ("silent", [], "no sample to make `silent` ones from"),
        ("noise", ["a text"], "like a `str`"),
        ("noise", [np.ones(0)], "like a `ndarray`"),
    ],
)
def test_what_cannot_be_made_is_named(kind, pool, message):
    """An unknown kind, an empty pool and a sample without an array are refused."""
    with pytest.raises(DataError, match=message):
        distractor(kind, pool, generator())
