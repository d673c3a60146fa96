"""Waveforms, and reading them from files."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch

from safe_framework.data.audio import Waveform, check_waveform, read_audio, resample
from safe_framework.data.images import read_image
from safe_framework.data.samples import read_array
from safe_framework.errors import DataError, SampleError


def tone(rate: int, hertz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    """A sine of half the full amplitude."""
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate) / 2


@pytest.fixture
def stereo(tmp_path: Path) -> Path:
    """A file with a tone in one channel and silence in the other."""
    path = tmp_path / "stereo.wav"
    channels = np.stack([tone(8000), np.zeros(4000)], axis=1)
    soundfile.write(path, channels, 8000, subtype="FLOAT")
    return path


def test_floats_of_any_width_become_float32() -> None:
    """Law: a waveform holds float32, whatever floats it was given."""
    for kind in (np.float16, np.float32, np.float64):
        assert Waveform(np.ones(3, kind), 16000).values.dtype == np.float32


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 5)), "average the channels"),
        (np.zeros(0), "at least one"),
        (np.zeros(5, np.int64), "divide samples by their full scale"),
        (np.zeros(5, np.uint8), "divide samples by their full scale"),
        ([0.0, 0.1], "not list"),
    ],
)
def test_what_is_no_mono_sound_is_refused(values: object, words: str) -> None:
    """Law: a waveform is one non-empty channel of floats, and the error says what to do."""
    with pytest.raises(SampleError, match=words):
        Waveform(values, 16000)  # type: ignore[arg-type]  # the wrong types are the point


@pytest.mark.parametrize("kind", [np.int16, np.int32])
def test_samples_of_integers_are_scaled_by_their_full_scale(kind: type) -> None:
    """Law: integers sound as the floats do that they were made of."""
    full = -float(np.iinfo(kind).min)
    whole = np.array([-full, -full / 2, 0, full / 4], dtype=kind)
    assert Waveform(whole, 16000).values.tolist() == [-1, -0.5, 0, 0.25]


def test_samples_in_another_byte_order_are_the_same() -> None:
    """Law: integers as AIFF and AU hold them are scaled as those of this machine."""
    whole = np.array([-(2**15), 2**14, 3], dtype=np.int16)
    values = Waveform(whole.astype(">i2"), 16000).values
    assert values.tolist() == Waveform(whole, 16000).values.tolist()


def test_whole_numbers_that_became_floats_are_told_of() -> None:
    """Law: amplitudes far beyond 1 are named with the loudest; those with some headroom are not."""
    with pytest.warns(UserWarning, match="`audio` has amplitudes up to 9830, as whole numbers"):
        check_waveform(Waveform(tone(8000) / 0.5 * 9830, 8000), "`audio`", "whisper", 8000)
    check_waveform(Waveform(tone(8000) * 8, 8000), "`audio`", "whisper", 8000)


def test_a_rate_out_of_numpy_is_a_rate() -> None:
    """Law: a whole number is one whatever library it comes from."""
    for rate in (np.int32(8000), np.array(8000), torch.tensor(8000)):
        waveform = Waveform(np.zeros(5), rate)
        assert type(waveform.sampling_rate) is int


@pytest.mark.parametrize("rate", [0, -1, 16000.0, True])
def test_a_rate_is_a_positive_integer(rate: object) -> None:
    """Law: a sampling rate that is not a positive integer is refused."""
    with pytest.raises(SampleError, match="`sampling_rate` must be a positive integer"):
        Waveform(np.zeros(5), rate)  # type: ignore[arg-type]  # the wrong types are the point


def test_channels_are_averaged(stereo: Path) -> None:
    """Law: a file of several channels gives their mean, at the file's own rate."""
    waveform = read_audio(stereo)
    assert waveform.sampling_rate == 8000
    np.testing.assert_allclose(waveform.values, tone(8000) / 2, atol=1e-6)


def test_reading_resamples_when_asked(stereo: Path) -> None:
    """Law: the sound at another rate is the same sound: same duration, same tone."""
    waveform = read_audio(stereo, 16000)
    assert (waveform.sampling_rate, waveform.seconds) == (16000, 0.5)
    middle = slice(2000, 6000)  # away from the ends, where the filter has no neighbours
    np.testing.assert_allclose(waveform.values[middle], tone(16000)[middle] / 2, atol=1e-3)


def test_resampling_to_its_own_rate_changes_nothing() -> None:
    """Law: a waveform that already has the rate is given back as it is."""
    waveform = Waveform(tone(8000), 8000)
    assert resample(waveform, 8000) is waveform


def test_torchaudio_resamples_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a torchaudio that works is used; `tests/optional/torchaudio` holds it to soxr."""
    fake = ModuleType("torchaudio")
    fake.functional = SimpleNamespace(resample=lambda wave, old, new, **kind: torch.ones(3))
    monkeypatch.setitem(sys.modules, "torchaudio", fake)
    assert resample(Waveform(np.zeros(2), 8000), 12000).values.tolist() == [1, 1, 1]


def test_soxr_resamples_where_torchaudio_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: without torchaudio, soxr is used."""
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    values = soxr.resample(tone(8000).astype(np.float32), 8000, 16000)
    assert np.array_equal(resample(Waveform(tone(8000), 8000), 16000).values, values)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Law: the error for a missing file names its path."""
    with pytest.raises(DataError, match=r"gone\.wav` does not exist"):
        read_audio(tmp_path / "gone.wav")


@pytest.mark.parametrize(
    ("there", "named", "hint"),
    [
        ("a b.wav", "a b.wav ", "did you mean `a b.wav`"),
        ("A.WAV", "a.wav", "did you mean `A.WAV`"),
        ("\u00fc.wav", "u\u0308.wav", "its letters are composed otherwise"),
        ("in/a.wav", "in\\a.wav", "did you mean `.*in/a.wav`"),
        ("in/a.wav", "in", "name a file in it"),
    ],
)
def test_a_name_that_is_nearly_right_is_told(
    tmp_path: Path, there: str, named: str, hint: str
) -> None:
    """Law: where a file of nearly the name is there, the error names it."""
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_bytes(b"x")
    with pytest.raises(DataError, match=f"(does not exist|is a folder)\nhint: {hint}"):
        read_audio(f"{tmp_path}/{named}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "it is text, which begins with '<!DOCTYPE html>"),
    ],
)
def test_what_stands_in_place_of_a_file_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    """Law: of what a failed download or checkout leaves, the error says what it is."""
    for name, read in (("a.wav", read_audio), ("a.png", read_image), ("a.npy", read_array)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}` cannot be read.*: .*{words}"):
            read(tmp_path / name)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """Law: the error for a file that is no sound names its path."""
    (tmp_path / "text.wav").write_text("not a sound")
    with pytest.raises(DataError, match=r"text\.wav` cannot be read"):
        read_audio(tmp_path / "text.wav")


def test_a_file_without_samples_is_named(tmp_path: Path) -> None:
    """Law: a sound file that lasts 0 s is an error that names its path."""
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    with pytest.raises(DataError, match=r"empty\.wav` holds no samples"):
        read_audio(tmp_path / "empty.wav")


def test_a_missing_extra_says_how_to_install_it(
    stereo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: without soundfile the error is the command that installs it."""
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DataError, match=r"pip install 'safe-framework\[audio\]'"):
        read_audio(stereo)
