"""torchaudio and soxr resample alike."""

import numpy as np
import pytest
import soxr

from safe_framework.data.audio import Waveform, resample

pytestmark = pytest.mark.torchaudio

RATES = [(44100, 16000), (48000, 16000), (16000, 48000), (8000, 16000), (11025, 16000),
         (22050, 48000), (16000, 44100), (16000, 8000)]  # fmt: skip


def band(rate: int, top: float) -> np.ndarray:
    """A second of noise from 20 Hz to ``top``, in hertz."""
    hertz = np.fft.rfftfreq(rate, 1 / rate)
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, len(hertz))
    wave = np.fft.irfft(np.exp(1j * phases) * ((hertz > 20) & (hertz < top)), rate)
    return (wave / np.abs(wave).max() / 2).astype(np.float32)


def power(wave: np.ndarray) -> float:
    """Mean square, away from the ends, where filters have no neighbours."""
    margin = len(wave) // 20
    return float(np.square(wave[margin:-margin].astype(np.float64)).mean())


@pytest.mark.parametrize(("given", "wanted"), RATES)
def test_they_agree(given: int, wanted: int) -> None:
    """Law: below nine tenths of the lower half rate, they differ by less than -60 dB."""
    values = band(given, 0.9 * min(given, wanted) / 2)
    ours, theirs = resample(Waveform(values, given), wanted), soxr.resample(values, given, wanted)
    assert not np.array_equal(ours.values, theirs)  # else torchaudio was not used
    assert 10 * np.log10(power(ours.values - theirs) / power(theirs)) < -60


@pytest.mark.parametrize(("given", "wanted"), RATES)
def test_lengths_are_equal(given: int, wanted: int) -> None:
    """Law: both give the same number of samples."""
    for count in range(1234, 1254):
        values = np.zeros(count, np.float32)
        ours = resample(Waveform(values, given), wanted).values
        assert ours.shape == soxr.resample(values, given, wanted).shape
