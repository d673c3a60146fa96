"""Sound files that are not as they should be, and formats that libsndfile does not know."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_framework.data.audio import mono, read_audio
from safe_framework.data.audio_files import decode
from safe_framework.errors import DataError, SafeError

RATE = 8000


def tone(hertz: float = 440.0, seconds: float = 1.0) -> np.ndarray:
    """A sine of 0.3 of the full amplitude."""
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)).astype("f4")


def written(folder: Path, kind: str, hertz: float = 440.0) -> bytes:
    """A second of a tone in a format."""
    path = folder / f"{hertz}.{kind}"
    soundfile.write(path, tone(hertz), RATE)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["wav", "aiff", "flac", "ogg", "mp3", "au", "caf", "w64"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_whose_end_is_missing_is_never_a_shorter_sound(
    tmp_path: Path, kind: str, share: float
) -> None:
    """Law: a broken download is refused by name, whatever its format and wherever it broke."""
    whole = written(tmp_path, kind)
    with pytest.raises(DataError, match="the clip"):
        decode(whole[: int(len(whole) * share)], "the clip")


def test_a_truncated_wave_says_what_is_missing(tmp_path: Path) -> None:
    """Golden text: how many bytes there should be, how many there are, and what to do."""
    path = tmp_path / "cut.wav"
    path.write_bytes(written(tmp_path, "wav")[:5044])
    with pytest.raises(DataError) as caught:
        read_audio(path)
    assert str(caught.value) == (
        f"the sound file `{path}` is truncated: its header says 16000 bytes of sound, "
        "and 5000 are there\n"
        "hint: fetch it again; if it is all there is, write it anew: ffmpeg -i OLD NEW.wav"
    )


@pytest.mark.parametrize("kind", ["short", "two"])
def test_sound_that_a_wave_does_not_count_is_told_of(tmp_path: Path, kind: str) -> None:
    """Law: samples behind what the header counts, or in a second chunk, are told of."""
    content = written(tmp_path, "wav")
    short = content[:40] + (100).to_bytes(4, "little") + content[44:]
    two = content + content[36:]
    with pytest.warns(UserWarning, match="the clip (says that it has 100 bytes|has 16000 bytes)"):
        decode(short if kind == "short" else two, "the clip")
    tagged = content + b"id3 \x04\0\0\0abcd" + bytes(600)  # a chunk, and zeros behind it
    assert len(decode(tagged, "the clip")[0]) == RATE


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0xFFFFFFFF - 44])  # ffmpeg, browsers
def test_a_wave_that_was_written_to_a_pipe_is_read_whole(tmp_path: Path, size: int) -> None:
    """Law: a header that could not say how much follows is no truncated file."""
    content = bytearray(written(tmp_path, "wav"))
    assert content[36:40] == b"data"
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    channels, _ = decode(bytes(content), "the clip")
    np.testing.assert_allclose(channels[:, 0], tone(), atol=2**-15)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64"])
def test_streams_behind_one_another_are_all_heard(tmp_path: Path, kind: str) -> None:
    """Law: files that were put together with `cat` give the sound of each, in order."""
    parts = [written(tmp_path, kind, hertz) for hertz in (300, 900, 500)]
    apart = [decode(part, "a part")[0] for part in parts]
    together, rate = decode(b"".join(parts), "the clip")
    assert rate == RATE
    assert np.array_equal(together, np.concatenate(apart))


def test_streams_of_two_rates_are_refused(tmp_path: Path) -> None:
    """Law: what cannot be one waveform is not made one."""
    soundfile.write(tmp_path / "a.flac", tone(), RATE)
    soundfile.write(tmp_path / "b.flac", tone(), 2 * RATE)
    both = (tmp_path / "a.flac").read_bytes() + (tmp_path / "b.flac").read_bytes()
    with pytest.raises(DataError, match="8000 Hz with 1 channels and 16000 Hz with 1 channels"):
        decode(both, "the clip")


def test_a_flac_that_does_not_say_its_length_is_read_whole(tmp_path: Path) -> None:
    """Law: a stream as an encoder writes it into a pipe is read to its end."""
    content = bytearray(written(tmp_path, "flac"))
    content[8 + 13] &= 0xF0  # STREAMINFO's 36 bits of total samples
    content[8 + 14 : 8 + 18] = bytes(4)
    channels, _ = decode(bytes(content), "the clip")
    np.testing.assert_allclose(channels[:, 0], tone(), atol=2**-15)


def encoded(kind: str, codec: str, seconds: float = 0.5) -> Callable[[Path], Path]:
    """Writes a tone by FFmpeg's encoders."""

    def write(folder: Path) -> Path:
        path = folder / f"tone.{kind}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=48000, layout="mono")
            wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(48000 * seconds)) / 48000)
            frame = av.AudioFrame.from_ndarray(wave.astype("f4")[None], "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
        return path

    return write


@pytest.mark.parametrize(
    ("kind", "codec"), [("m4a", "aac"), ("mp4", "aac"), ("webm", "libopus"), ("mka", "flac")]
)
def test_formats_of_phones_and_videos_are_read(tmp_path: Path, kind: str, codec: str) -> None:
    """Law: what libsndfile does not know is read by PyAV: the same tone, as long as it was."""
    waveform = read_audio(encoded(kind, codec)(tmp_path))
    assert waveform.sampling_rate == 48000
    assert abs(waveform.seconds - 0.5) < 0.1  # codecs fill their frames up
    spectrum = np.abs(np.fft.rfft(waveform.values))
    heard = spectrum.argmax() * waveform.sampling_rate / len(waveform.values)
    assert abs(heard - 440) <= 2 * waveform.sampling_rate / len(waveform.values)


def test_a_phones_file_whose_end_is_missing_is_refused(tmp_path: Path) -> None:
    """Law: where FFmpeg would give a shorter sound, the file's own length is asked."""
    path = tmp_path / "tone.m4a"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        noise = np.random.default_rng(0).normal(0, 0.1, (1, 96_000)).astype("f4")
        frame = av.AudioFrame.from_ndarray(noise, "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    whole = path.read_bytes()
    assert abs(len(decode(whole, "the clip")[0]) - 96_000) < 4800
    with av.open(str(path)) as container:
        ends = [packet.pos for packet in container.demux(audio=0) if packet.pos]
    for share in (0.3, 0.8):  # between two packets, where nothing that can be read is broken
        with pytest.raises(DataError, match=r"the clip is truncated: .* 2\.\d\d s"):
            decode(whole[: ends[int(len(ends) * share)]], "the clip")


def test_without_pyav_the_error_says_what_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a phone's recording that cannot be read names the extra and the command."""
    path = encoded("m4a", "aac")(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(DataError, match=re.escape("pip install 'safe-framework[media]'")):
        read_audio(path)


def test_channels_that_cancel_each_other_are_told_of() -> None:
    """Law: where the mean of channels is silence, one is heard, and a warning says so.

    A silent file stays silent, and channels that differ are averaged.
    """
    wave = tone()
    with pytest.warns(UserWarning, match="channel 2 alone"):
        heard = mono(np.stack([-0.999 * wave, wave], axis=1), "`a.wav`")
    assert np.array_equal(heard, wave)
    assert not mono(np.zeros((50, 2), np.float32), "`a.wav`").any()
    other = tone(900)
    averaged = mono(np.stack([wave, other], axis=1), "`a.wav`")
    assert np.array_equal(averaged, np.stack([wave, other], axis=1).mean(axis=1))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["wav", "flac", "ogg", "aiff"]), st.data())
def test_damaged_files_are_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Law: whatever bytes are wrong, the error is one of ours and names the file."""
    content = bytearray(written(tmp_path_factory.mktemp("damaged"), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        channels, rate = decode(bytes(content), "the clip")
    except SafeError as error:
        told = str(error)
    else:
        told = f"the clip: {len(channels)} samples" if rate > 0 and len(channels) else ""
    assert "the clip" in told
