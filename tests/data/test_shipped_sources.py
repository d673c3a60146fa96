"""The instruments' clips of several sources, as they ship."""

import hashlib
from collections import Counter

import numpy as np
import soundfile

from safe_framework.data.readers import read_rows
from safe_framework.utils.catalogue import recipe_path

FOLDER = recipe_path("quickstart").parents[1] / "data/instruments/sources"
PARTS = {
    part: [row for _, row in read_rows(FOLDER / f"{part}.jsonl")]
    for part in ("train", "test", "test_other")
}


def test_a_source_is_never_heard_in_training() -> None:
    """Law: the splits share no clip, and `test_other` has no source of the others."""
    held = [row["audio"] for rows in PARTS.values() for row in rows]
    digests = {hashlib.sha256((FOLDER / file).read_bytes()).hexdigest() for file in held}
    assert len(held) == len(digests) == 235 + 101 + 72
    sources = {part: {row["source"] for row in rows} for part, rows in PARTS.items()}
    assert sources["train"] == sources["test"] == {"fluid-r3", "sonivox"}
    assert sources["test_other"] == {"tonejs-instruments"}
    every = [row for _, row in read_rows(FOLDER / "test_all.jsonl")]
    assert every == PARTS["test"] + PARTS["test_other"]


def test_every_source_has_instruments_that_training_names() -> None:
    """Law: `test_other` asks for six notes of each of twelve instruments that training names."""
    other = Counter(row["answer"] for row in PARTS["test_other"])
    assert set(other.values()) == {6}
    assert len(other) == 12
    assert other.keys() < {row["answer"] for row in PARTS["train"]}


def test_every_clip_is_one_second_and_named_once() -> None:
    """Law: the folder holds the named clips alone, each a mono second at 16 kHz."""
    named = [row["audio"] for rows in PARTS.values() for row in rows]
    own = [FOLDER / file for file in named if not file.startswith("..")]
    assert sorted(own) == sorted((FOLDER / "clips").glob("*"))
    for clip in own:
        wave, rate = soundfile.read(clip)
        assert (wave.shape, rate) == ((16_000,), 16_000)
        assert 0.5 < np.abs(wave).max() < 1.2
