"""A running recording that is asked about, without a browser."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import safe_framework
from safe_framework.cli import main
from safe_framework.core.model import SafeModel
from safe_framework.data.audio import Waveform
from safe_framework.errors import DataError, SafeError
from safe_framework.serving.listening import MOST, answers, filed, listen, piped
from safe_framework.serving.playground import ask_heard, hear
from safe_framework.verification import target
from tests.support.chats import speaking
from tests.support.levels import RATE, LevelEncoder, write_m4a
from tests.support.toys import ToyFusion, ToyProjector, llama


def hearing(encoder: LevelEncoder) -> SafeModel:
    """A model that hears."""
    words = speaking("chatml")
    model = SafeModel(llama(vocab_size=len(words), max_position_embeddings=512), words)
    parts: Any = {"projector": ToyProjector(encoder.dim), "fusion": ToyFusion()}
    model.add_modality("ear", encoder=encoder, **parts)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> SafeModel:
    """One that hears five seconds in windows of one."""
    return hearing(LevelEncoder().cut_into_windows(longest=5.0))


@pytest.fixture(scope="module")
def sound() -> Any:
    """Seven and a half seconds that become louder, as 16-bit integers."""
    values = np.random.default_rng(0).uniform(-1, 1, 7500) * np.linspace(0.01, 0.9, 7500)
    return (values * 2**15).astype(np.int16)


def expected(model: SafeModel, values: Any, at: int, seconds: int) -> str:
    """The answer about the last whole windows of so many seconds, at once."""
    first = max(0, -(-(at - seconds * RATE) // RATE) * RATE)
    asked = {"question": "what", "ear": Waveform(values[first:at], RATE)}
    options: Any = {"max_new_tokens": 4, "do_sample": False}
    (found,) = safe_framework.pipeline(model)(asked, **options)
    return str(found["generated_text"])


def test_a_pipe_is_asked_about_as_it_goes_on(model: SafeModel, sound: Any) -> None:
    """Law: each answer is that about the last seconds before it, whatever chunks a pipe gives."""
    chunks = piped(io.BytesIO(sound.tobytes()), RATE)  # type: ignore[arg-type]  # reads alike
    found = list(answers(model, "ear", chunks, "what", seconds=3.0, every=2.0, max_new_tokens=4))
    assert [second for second, _ in found] == [2.0, 4.0, 6.0, 7.5]
    for second, answer in found:
        assert answer == expected(model, sound, round(second * RATE), 3)


def test_half_a_sample_is_told() -> None:
    """Law: a pipe of odd bytes is no sound of 16-bit integers, and a warning says so."""

    class Odd(io.BytesIO):
        """A pipe that gives three bytes at a time."""

        def read(self, size: int | None = -1) -> bytes:
            return super().read(3)

    with pytest.warns(UserWarning, match="ends within a sample"):
        chunks = list(piped(Odd(bytes(range(11))), RATE))  # type: ignore[arg-type]  # reads alike
    values = np.concatenate([chunk.values for chunk in chunks])
    assert np.array_equal(values * 2**15, np.frombuffer(bytes(range(10)), "<i2"))


def test_what_goes_wrong_in_a_pipe_is_raised() -> None:
    """Law: an error of the pipe is the reader's."""

    class Broken(io.BytesIO):
        """A pipe that breaks."""

        def read(self, size: int | None = -1) -> bytes:
            raise OSError("the pipe is broken")

    with pytest.raises(OSError, match="the pipe is broken"):
        list(piped(Broken(), RATE))  # type: ignore[arg-type]  # reads alike


@pytest.fixture
def played(model: SafeModel, monkeypatch: pytest.MonkeyPatch) -> SafeModel:
    """The model, under any name of an adapter."""
    monkeypatch.setattr(target, "open_target", lambda *_: (model, None))
    return model


def test_the_command_answers_a_pipe(
    played: SafeModel,
    sound: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Law: `--from -` prints when it asked, and the answer, with the recording's end."""
    reads, writes = os.pipe()
    os.write(writes, sound.tobytes())
    os.close(writes)
    options = ["--max-new-tokens", "4", "--question", "what"]
    with os.fdopen(reads, "rb") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert main(["play", "any", "--listen", "4", "--from", "-", *options]) == 0
    first, last = (expected(played, sound, at, 4) for at in (4000, 7500))
    assert capfd.readouterr().out.split() == ["0:04", *first.split(), "0:08", *last.split()]


def test_a_file_of_any_kind_is_a_recording_that_goes_on(
    model: SafeModel, tmp_path: Path, sound: Any
) -> None:
    """Law: what a phone recorded is heard to its end, at the sense's rate."""
    write_m4a(tmp_path / "mine.m4a", np.sin(np.arange(4 * 8_000) / 8), 8_000)
    found = list(answers(model, "ear", filed(tmp_path / "mine.m4a"), "what", max_new_tokens=2))
    assert found[-1][0] == pytest.approx(4.0, abs=0.3)  # with a codec's padding


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "9", "--from", "SOUND"], "longer than the 5 s of `ear` that `longest`"),
        (["--listen", "0", "--from", "SOUND"], "`seconds` must be a positive number, not 0"),
        (["--every", "0", "--from", "SOUND"], "`every` must be a positive number of seconds"),
        (["--from", "gone.wav"], "the sound file `gone.wav` does not exist"),
        (["--question", " ", "--from", "SOUND"], "there is no question"),
        (["--every", "3"], "`--every` is of what `--from` listens to"),
        (["--rate", "8000", "--listen"], "`--rate` is of what `--from` listens to"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str],
    message: str,
    played: SafeModel,
    tmp_path: Path,
    sound: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Law: each mistake is an error with its words, and no answer."""
    path = tmp_path / "sound.wav"
    soundfile.write(path, sound, RATE)
    given = [str(path) if one == "SOUND" else one for one in arguments]
    assert main(["play", "any", "--question", "what", *given]) == 1
    shown = capfd.readouterr()
    assert message in " ".join(shown.err.split())
    assert not shown.out


def test_an_empty_pipe_is_told(model: SafeModel) -> None:
    """Law: nothing heard is no answer."""
    with pytest.raises(DataError, match="nothing was heard"):
        list(answers(model, "ear", iter(()), "what"))


# The page


def test_the_page_hears_chunks_and_is_asked(model: SafeModel, tmp_path: Path, sound: Any) -> None:
    """Law: a microphone's chunks are heard behind one another, and asked about is their last."""
    listener, chat = None, list[Any]()
    for number, start in enumerate(range(0, 6000, 2000)):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, sound[start : start + 2000], RATE)
        listener, told = hear(model, "ear", 3.0, str(path), listener)
        assert f"heard 0:0{2 * (number + 1)}, of it the last {min(2 * number + 2, 3)}.0 s" in told
        chat, wrong = ask_heard(model, listener, "what", 1.0, chat, 4)
        assert wrong == ""
        assert chat[-1]["content"] == expected(model, sound, start + 2000, 3)
    assert [one["role"] for one in chat] == ["user", "assistant"] * 3
    assert chat[-2]["content"] == "what\n\n*at 0:06, about the last 3.0 s*"
    shut, _ = ask_heard(model, listener, "what", 0.0, [], 4)
    with model.off():
        (base,) = safe_framework.pipeline(model)({"question": "what"}, max_new_tokens=4)
    assert shut[-1]["content"] == base["generated_text"]


def test_the_page_says_what_is_wrong(model: SafeModel, tmp_path: Path) -> None:
    """Law: what cannot be heard or asked is said, and what was heard and asked stays."""
    assert hear(model, "ear", None, None, None) == (None, "")
    (tmp_path / "bad.wav").write_text("no sound")
    listener, told = hear(model, "ear", None, str(tmp_path / "bad.wav"), None)
    assert listener is None
    assert "bad.wav" in told
    assert "nothing was heard yet" in ask_heard(model, None, "what", 1.0, [])[1]
    ears = listen(model, "ear", None)
    ears.add(np.zeros(10, np.float32))
    chat = [{"role": "user", "content": "what"}]
    assert ask_heard(model, ears, " ", 1.0, chat)[0] == chat
    path = tmp_path / "other.wav"
    soundfile.write(path, np.zeros(100), 2 * RATE)
    same, told = hear(model, "ear", None, str(path), ears)
    assert same is ears
    assert "a chunk is sampled at 2000 Hz" in told


def test_half_a_minute_is_heard_unless_somebody_says() -> None:
    """Law: where nobody says how much, it is what the sense takes, and no more than ``MOST``."""
    long = hearing(LevelEncoder().cut_into_windows(longest=600.0))
    assert listen(long, "ear", None).seconds == MOST
    assert listen(long, "ear", 100.0).seconds == 100.0
    assert listen(hearing(LevelEncoder(2)), "ear", None).seconds == 2.0
    with pytest.raises(SafeError, match="longer than the 2 s of `ear` that the encoder takes"):
        listen(hearing(LevelEncoder(2)), "ear", 3.0)
