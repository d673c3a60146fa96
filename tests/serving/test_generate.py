"""``safe generate``: a file answered into a file, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from safe_framework.data import samples
from safe_framework.data.audio import Waveform
from safe_framework.errors import DataError
from safe_framework.serving.engine import Request, Sampling
from safe_framework.serving.offline import GenerateOptions, generate
from tests.serving.hearing import RATE, answered, asking, hearing_model, tone
from tests.support import levels
from tests.support.toys import ToyFusion, ToyProjector

OPTIONS = GenerateOptions(Sampling(max_tokens=6), max_batch=2)
COUNT = 37


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows of every kind, a few of which cannot be answered."""
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", tone(number).values, RATE, subtype="FLOAT")
    np.save(tmp_path / "felt.npy", np.full((3, 4), 0.5, dtype=np.float32))
    kinds: list[dict[str, Any]] = [
        {"question": "w5 w6", "audio": "0.wav"},
        {"question": "w5 w6"},
        {"question": "w7", "audio": ["1.wav", "2.wav"], "gate": 0.5},
        {"messages": [{"role": "user", "content": [{"type": "audio", "path": "1.wav"},
                                                   {"type": "text", "text": "w8 w9"}]}]},
        {"question": "w5", "audio": "missing.wav"},
        {"question": "w10", "touch": "felt.npy", "max_tokens": 3},
        {"question": "w10", "smell": "rose"},
    ]  # fmt: skip
    lines = [json.dumps({"id": f"row-{n}", **kinds[n % len(kinds)]}) for n in range(COUNT - 1)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*lines, "{broken"]) + "\n", "utf-8")
    return path


def test_a_file_is_answered_in_its_order(rows: Path, tmp_path: Path) -> None:
    """Law: each row gets the engine's answer, in order, and a row that is wrong its error."""
    out, seen = tmp_path / "out.jsonl", list[tuple[str, int, int]]()
    failed = generate(
        hearing_model(), rows, out, OPTIONS, progress=lambda *told: seen.append(told[:3])
    )
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [line["row"] for line in lines] == list(range(COUNT))
    assert [line.get("id") for line in lines] == [*(f"row-{n}" for n in range(COUNT - 1)), None]
    assert failed == sum("error" in line for line in lines) == 11
    assert "missing.wav` does not exist" in lines[4]["error"]
    assert "nothing reads `smell`" in lines[6]["error"]
    assert (lines[2]["gates"], lines[1]["gates"]) == ({"audio": 0.5}, {})
    assert (lines[5]["tokens"], lines[5]["finish_reason"]) == (3, "length")
    (told,) = answered(hearing_model(), asking("w8 w9", tone(1), max_tokens=6))
    assert lines[3]["answer"] == told.text[0]
    assert seen[-1] == ("answers", COUNT, COUNT)


def test_a_long_sound_is_read_as_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a sense with windows hears all of a long file, which is never read at once."""
    model, encoder = hearing_model(), levels.LevelEncoder().cut_into_windows(longest=5.0)
    parts: Any = {"projector": ToyProjector(encoder.dim), "fusion": ToyFusion(layers=(0,))}
    model.add_modality("ear", encoder=encoder, attend="answer", **parts)
    rate = levels.RATE
    values = np.random.default_rng(0).uniform(-1, 1, round(3.5 * rate)).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", values, rate, subtype="FLOAT")
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"question": "w5 w6", "ear": "long.wav"}', "utf-8")
    monkeypatch.setattr(samples, "read_audio", None)
    assert generate(model, path, out, OPTIONS) == 0
    asked = [{"type": "ear", "ear": Waveform(values, rate)}, {"type": "text", "text": "w5 w6"}]
    talk = [{"role": "user", "content": asked}]
    (told,) = answered(model, Request(talk, None, OPTIONS.sampling, as_question=True))
    assert json.loads(out.read_text("utf-8"))["answer"] == told.text[0]


def test_a_killed_run_goes_on(rows: Path, tmp_path: Path) -> None:
    """Law: cut anywhere, even within a line, a run that goes on ends with the same bytes."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    model = hearing_model()
    generate(model, rows, whole, OPTIONS)
    content = whole.read_bytes()
    generate(model, rows, cut, OPTIONS)
    for length in (0, 7, len(content) // 3, len(content) // 2 + 3, len(content) - 1):
        cut.write_bytes(content[:length])
        generate(model, rows, cut, OPTIONS)
        assert cut.read_bytes() == content
    calls = list[int]()
    model.modality("audio").encoder.register_forward_hook(lambda *_: calls.append(1))
    generate(model, rows, cut, OPTIONS)
    assert not calls


def test_another_runs_answers_are_left_alone(rows: Path, tmp_path: Path) -> None:
    """Law: answers of other options, another model or other rows are refused, until told."""
    out, model = tmp_path / "out.jsonl", hearing_model()
    generate(model, rows, out, OPTIONS, identity="a")
    before = out.read_bytes()
    for options, identity in ((OPTIONS, "b"), (GenerateOptions(Sampling(max_tokens=7)), "a")):
        with pytest.raises(DataError, match="holds answers to other rows"):
            generate(model, rows, out, options, identity=identity)
    assert out.read_bytes() == before
    restart = GenerateOptions(Sampling(max_tokens=6), gate=0.0, max_batch=2, restart=True)
    generate(model, rows, out, restart, identity="b")
    assert out.read_bytes() != before
